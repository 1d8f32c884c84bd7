"""Whether a tuned pool may replace the one in use: measured on held-back data, for every network, with a tolerance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from weightbank.errors import DataError, NonFiniteError
from weightbank.evaluation import evaluate
from weightbank.layout import everything
from weightbank.paging.bound import Bound
from weightbank.task import Task
from weightbank.types import Batches

TOLERANCE = 0.01
"""A network may lose one point of accuracy; a regression one per cent of its error."""


@dataclass(frozen=True)
class Score:
    """What a network is worth on its held-back data: accuracy (of a classification) or rmse, on so many examples.

    `right` tells which examples a classification had right, where that is kept.
    """

    metric: str
    value: float
    examples: int
    right: Bool[Tensor, " N"] | None = field(default=None, repr=False, compare=False)

    def worse_than(self, before: "Score", tolerance: float) -> bool:
        """Whether more than `tolerance` was lost since `before`: accuracy, or a fraction of the rmse.

        One standard error of the loss is allowed for chance, so that a single example of few does not decide.
        """
        if not math.isfinite(self.value):
            return True
        if not math.isfinite(before.value):
            return False
        return -self.gain(before) - self.doubt(before) > tolerance

    def doubt(self, before: "Score") -> float:
        """The standard error of the difference of two scores on the same examples; 0 where it is not known.

        √(examples judged differently) / N for an accuracy (McNemar); 1 / √(2 N) of an rmse, as of normal errors.
        """
        if self.metric != "accuracy":
            return 1 / math.sqrt(2 * max(self.examples, 1))
        if self.right is None or before.right is None or len(self.right) != len(before.right):
            return 0.0
        return math.sqrt(int((self.right != before.right).sum())) / max(len(self.right), 1)

    def gain(self, before: "Score") -> float:
        """How much better than `before` this is: accuracy gained, or the fraction of the rmse that is gone."""
        if self.metric == "accuracy":
            return self.value - before.value
        return (before.value - self.value) / max(abs(before.value), 1e-12)

    def reaches(self, target: float) -> bool:
        """Whether it is at least as good as `target`, in the metric's own unit."""
        return self.value >= target if self.metric == "accuracy" else self.value <= target

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"metric": self.metric, "value": self.value, "examples": self.examples}

    def __str__(self) -> str:
        return f"{100 * self.value:.2f} %" if self.metric == "accuracy" else f"{self.metric} {self.value:.4g}"


def score(task: Task, bound: Bound, data: Batches) -> Score:
    """Measure the network of a tenant as the memory under it is now; a broken one (NaN) has the value NaN."""
    bound.pull()
    try:
        judged = Task(task.name, bound.net, task.loss, data, data, where=everything, batch_size=task.batch_size)
        found = evaluate(judged, judged.theta(), batch_norm="keep", data=data)
    except (DataError, NonFiniteError) as error:
        if isinstance(error, DataError) and "gave NaN" not in str(error):
            raise  # the data are at fault, not the network
        return Score("accuracy", math.nan, 0)
    finally:
        bound.release()
    if found.kind != "classification":
        return Score("rmse", found["rmse"].mean, len(found.targets))
    right = found.prediction.argmax(1) == found.targets
    return Score("accuracy", found["accuracy"].mean, len(right), right)


def hurt(before: Mapping[str, Score], after: Mapping[str, Score], tolerance: Mapping[str, float]) -> list[str]:
    """The networks that lost more than their tolerance."""
    return [name for name in after if after[name].worse_than(before[name], tolerance[name])]


def worth(before: Mapping[str, Score], after: Mapping[str, Score]) -> float:
    """By how much the networks gained, on average: what the best candidate has most of."""
    gains = [after[name].gain(before[name]) for name in after]
    return math.fsum(gains) / len(gains) if all(map(math.isfinite, gains)) else math.nan

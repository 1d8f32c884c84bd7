"""How much each weight of a tenant counts: any curvature, brought to mean one so that every network keeps its share.

The published estimate (Neural Weight Virtualization, MobiSys 2020) differed 1,300-fold between networks: the surest one
weighed nothing, and the others overwrote it. Within a network the proportions are those of the curvature.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from weightbank.curvature import fisher
from weightbank.errors import CurvatureError, LayoutError, NonFiniteError
from weightbank.task import Task
from weightbank.types import Flat

Importance: TypeAlias = Flat | Callable[[Task], Flat]
EXAMPLES = 2_000
"""Training examples that the default importance looks at."""
FLOOR = 1e-3
"""Added to importances of mean one: even a weight without curvature prefers its own value to none."""


def importance_of(task: Task, importance: Importance | None = None) -> Flat:
    """The importance of each weight, shape (P,), as it came; `curvature.fisher` of 2,000 examples for None.

    A function is called with the task, such as `curvature.ggn_sampled`. An infinite importance, as of 1 / variance
    where a weight never moved, counts as the largest finite one. Raises `LayoutError` for another number of weights,
    `NonFiniteError` for NaN, `CurvatureError` for a negative one, or for a loss without known curvature.
    """
    if importance is None:
        try:
            importance = fisher(task, images=EXAMPLES)
        except CurvatureError as error:
            raise CurvatureError(
                f"{task.name}: no importance could be measured ({error}); pass importance=, a vector of "
                f"{task.layout.size:,} or a function of the task such as weightbank.curvature.magnitude"
            ) from error
    elif not isinstance(importance, torch.Tensor):
        if not callable(importance):
            raise LayoutError(
                f"{task.name}: importance is a {type(importance).__name__}; wanted a tensor of {task.layout.size:,} or "
                "a function of the task such as weightbank.curvature.fisher"
            )
        importance = importance(task)
    task.layout.check(importance)
    found = importance.detach().to("cpu", torch.float32)
    if bool(found.isnan().any()):
        raise NonFiniteError(f"{task.name}: {int(found.isnan().sum()):,} importances are NaN")
    endless = found == math.inf
    if bool(endless.any()):
        found = torch.where(endless, found[~endless].max() if not bool(endless.all()) else 1.0, found)
    if len(found) and float(found.min()) < 0:
        raise CurvatureError(f"{task.name}: importances must not be negative, one is {float(found.min()):g}")
    return found


def normalised(importance: Flat, share: float = 1.0) -> tuple[Flat, float]:
    """Importances of mean `share`, each at least a thousandth of that, shape (P,), and the mean they had.

    Where all are zero, all weights count the same. Raises `LayoutError` for a share that is not positive and finite.
    """
    if not 0 < share < math.inf:
        raise LayoutError(f"share={share}; wanted a positive number, 1 counts as much as any other network")
    mean = float(importance.mean(dtype=torch.float64))
    relative = importance / mean if mean > 0 else torch.ones_like(importance)
    return (relative + FLOOR) * (share / (1 + FLOOR)), mean

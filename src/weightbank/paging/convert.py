"""Store a pool in another format, rounded so that all its networks go on predicting what they predicted.

Rounding each position to the nearest number is best as far as the loss rises by ½ Σ h δ², each weight for itself. But
weights act together, and errors that act together can cancel: after nearest rounding, positions are moved by about one
step of the format, straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), until the predictions of the
networks are again those of the pool as it was. That is distillation (Hinton et al. 2015, arXiv 1503.02531) of a pool
into its own rounding, in the spirit of adaptive rounding (Nagel et al. 2020, arXiv 2004.10568), for many networks at
once. It needs inputs, but no labels.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weightbank.curvature.teaching import CHECKS, REACH, STEPS, divergence_on, mean_divergence, step_scaled
from weightbank.errors import DataError
from weightbank.formats import Format, format_of
from weightbank.formats.spacing import RUN, step_sizes
from weightbank.paging.asked import Judged, Tasks, check_tenants, judged_of, limits_of, named_tasks
from weightbank.paging.bound import Bound
from weightbank.paging.commit import TOLERANCE, Score, hurt, score
from weightbank.paging.draft import Draft
from weightbank.paging.tied import Settings, Tied
from weightbank.paging.tune import HOLD
from weightbank.progress import progress
from weightbank.sizes import readable
from weightbank.task import Source, Task, apply
from weightbank.types import Flat, Inputs
from weightbank.undisturbed import undisturbed

if TYPE_CHECKING:
    from weightbank.paging.pool import Pool


@dataclass(frozen=True)
class Converted:
    """What another format costs.

    Attributes:
        committed: whether the pool is in the new format now; if not it is as it was.
        before: the scores on held-back data of the pool as it was, by network with a task.
        nearest: those after rounding to the nearest numbers. after: those of the result, or of the last candidate.
        moved: how far predictions on held-back data moved from those of the pool as it was, as a rise of the loss (for
            a classification KL(p ‖ p'), nats per example): rounded to nearest, and in the end.
        predicted: ½ Σ F δ² of rounding to nearest, the same rise in theory; for each tenant with importances.
        format: the format asked for. bytes_before, bytes_after: of the shared memory.
        steps: optimizer steps taken. seconds: wall time.
        hurt: who lost more than its tolerance.
    """

    committed: bool
    before: Mapping[str, Score]
    nearest: Mapping[str, Score]
    after: Mapping[str, Score]
    moved: Mapping[str, tuple[float, float]]
    predicted: Mapping[str, float]
    format: Format
    bytes_before: int
    bytes_after: int
    steps: int
    seconds: float
    hurt: Sequence[str] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "committed": self.committed,
            "format": repr(self.format),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "steps": self.steps,
            "seconds": self.seconds,
            "before": {name: score.to_dict() for name, score in self.before.items()},
            "nearest": {name: score.to_dict() for name, score in self.nearest.items()},
            "after": {name: score.to_dict() for name, score in self.after.items()},
            "moved": {name: {"nearest": nearest, "after": after} for name, (nearest, after) in self.moved.items()},
            "predicted": dict(self.predicted),
            "hurt": list(self.hurt),
        }

    def __str__(self) -> str:
        said = "committed" if self.committed else "not committed"
        sizes = f"{readable(self.bytes_before)} -> {readable(self.bytes_after)}"
        lines = [f"{self.format!r}, {sizes}, {self.steps:,} steps in {self.seconds:.1f} s: {said}"]
        for name, (nearest, after) in self.moved.items():
            scores = f"{self.before[name]}, rounded to nearest {self.nearest[name]}, now {self.after[name]}"
            lines.append(f"  {name}: {scores}; loss of the old predictions up {nearest:.2g}, now {after:.2g}")
        for name, rise in self.predicted.items():
            if name not in self.moved:
                lines.append(f"  {name}: loss up by about {rise:.2g} in theory")
        if self.hurt:
            lines.append(f"  lost more than tolerated: {', '.join(self.hurt)}")
        return "\n".join(lines)


def convert(
    pool: "Pool",
    dtype: torch.dtype | Format | str,
    tasks: Tasks = (),
    *,
    steps: int = STEPS,
    tolerance: float | Mapping[str, float] = TOLERANCE,
    shares: Mapping[str, float] | None = None,
    validation: Mapping[str, Source] | None = None,
    hold: float = HOLD,
    seed: int = 0,
) -> Converted:
    """Store a pool in another format, rounded so that its networks go on predicting what they predicted.

    Readers keep what they have; the result appears at once, or not at all if a network lost more than its tolerance on
    held-back training data. Places stay as they are.

    Args:
        pool: what to convert.
        dtype: what a position is to be stored as: torch.bfloat16, "bfp8", any Format with rows.
        tasks: of one, some or all tenants; without, each position is rounded to the nearest number and nothing is
            measured. Labels are not looked at, unless a loss is of an unknown kind: then it is the loss that is kept.
        steps: of rounding by example, each with a minibatch per task. 0 rounds to nearest, and measures that.
        tolerance: the accuracy that a network may lose, 0.01 is a point; for regressions a fraction of the rmse.
        shares: by tenant, the weight of its divergence; 1 if not named.
        validation: by tenant, data to judge by instead of held-back training data. Never pass test data.
        hold: tenants without a task are held at their weights as in `tune`.
        seed: of the order of the data, and of what is held back.

    Raises:
        FormatError: for a format without rows.
        LayoutError: for a task that is not in the pool, or whose model has other weights.
        NonFiniteError: for weights beyond the format.
        DivergedError: when predictions or gradients become NaN or infinite. The pool is as it was.
        DataError: for arguments out of range, and data from which nothing can be held back.
    """
    start = time.monotonic()
    format = format_of(dtype)
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 0 or not 0 <= hold < math.inf:
        raise DataError(f"steps={steps!r}, hold={hold!r}; wanted a whole number, and nothing negative, NaN or infinite")
    named = {} if isinstance(tasks, Sequence | Mapping) and not tasks else named_tasks(tasks)
    with (
        torch.enable_grad(),
        pool.edit() as draft,
        undisturbed(*(task.train for task in named.values()), device=torch.device("cpu"), seed=seed),
    ):
        draft.publish = False  # until the end is seen
        check_tenants([*named, *(shares or {}), *(validation or {})], named, draft.tenants)
        settings = Settings(int(steps), 2 * REACH / max(int(steps), 1), hold, {}, dict(shares or {}))
        limits, judged = limits_of(tolerance, named), judged_of(named, seed, validation)
        done = _converted(draft, format, named, limits, judged, settings)
        draft.publish = done.committed
    return replace(done, seconds=time.monotonic() - start)


def _converted(
    draft: Draft,
    format: Format,
    tasks: Mapping[str, Task],
    limits: Mapping[str, float],
    judged: Judged,
    settings: Settings,
) -> Converted:
    """Leave the best candidate in the draft, in the new format."""
    exact, old = draft.values.clone(), draft.rounded()
    draft.format = format
    new = draft.rounded()
    rounded = new.values()
    predicted = {}
    for name, tenant in draft.tenants.items():
        if tenant.importance is not None:
            change = tenant.placement.gather(rounded - exact).square_().mul_(tenant.importance.float())
            predicted[name] = 0.5 * tenant.scale * float(change.sum(dtype=torch.float64))
    whole: dict[str, Any] = {"format": format, "bytes_before": old.nbytes, "bytes_after": new.nbytes, "seconds": 0.0}
    if not tasks:
        draft.values = rounded
        return Converted(True, {}, {}, {}, {}, predicted, steps=0, **whole)
    run = Taught(draft, tasks, judged, settings, exact, rounded)
    before = {name: score(task, run.teachers[name], judged[name][1]) for name, task in tasks.items()}
    nearest, first = run.scores(), run.moved()
    best = (_total(first, settings), rounded, nearest, first) if not hurt(before, nearest, limits) else None
    after, found = nearest, first
    steps = settings.steps if bool((rounded != exact).any()) else 0
    every = max(1, steps // CHECKS)
    with progress(f"rounding {len(tasks)} networks", steps) as bar:
        for number in range(steps):
            run.step(number)
            bar.advance()
            if (number + 1) % every and number + 1 < steps:
                continue
            after, found = run.scores(), run.moved()
            bar.note(", ".join(f"{name} {value}" for name, value in after.items()))
            total = _total(found, settings)
            if not hurt(before, after, limits) and (best is None or total <= best[0]):
                best = total, run.seen.clone(), after, found
    if best is not None:
        _, draft.values, after, found = best
    moved = {name: (first[name], found[name]) for name in tasks}
    lost = () if best is not None else hurt(before, after, limits)
    return Converted(best is not None, before, nearest, after, moved, predicted, steps=steps, hurt=lost, **whole)


def _total(moved: Mapping[str, float], settings: Settings) -> float:
    return math.fsum(rise * settings.shares.get(name, 1.0) for name, rise in moved.items())


class Taught(Tied):
    """Training of a draft's values towards the predictions that its networks had at `exact`, (N,).

    Networks are in evaluation mode: no dropout, and BatchNorm statistics stay. Positions move by up to about one step
    of the format where they are, whatever the scale of the weights there; those without error do not move.
    """

    def __init__(
        self,
        draft: Draft,
        tasks: Mapping[str, Task],
        judged: Judged,
        settings: Settings,
        exact: Flat,
        rounded: Flat,
    ) -> None:
        super().__init__(draft, tasks, {name: stream for name, (stream, _) in judged.items()}, settings)
        self.judged = judged
        self.teachers = {
            name: Bound(draft.tenants[name], task.model, exact, self.gradient) for name, task in tasks.items()
        }
        self.spread = step_sizes(exact, rounded, max(RUN, draft.format.columns))

    def scores(self) -> dict[str, Score]:
        """Of the rounded networks, on held-back data."""
        return {name: score(task, self.bounds[name], self.judged[name][1]) for name, task in self.tasks.items()}

    def moved(self) -> dict[str, float]:
        """By how much the predictions of each network on held-back data moved, per example."""
        found = {}
        for name, task in self.tasks.items():
            bound = self.bounds[name]
            bound.pull()
            found[name] = divergence_on(
                self.judged[name][1], task, partial(apply, bound.net.eval()), partial(self._taught, name)
            )
            bound.release()
        return found

    def _loss(self, name: str, net: nn.Module, x: Inputs, y: Tensor) -> Tensor:
        return mean_divergence(self.tasks[name].loss, apply(net.eval(), x), self._taught(name, x), y)

    def _taught(self, name: str, x: Inputs) -> Any:
        """What a network predicted before."""
        teacher = self.teachers[name]
        teacher.pull()
        with torch.no_grad():
            output = apply(teacher.net.eval(), x)
        teacher.release()
        return output

    def _move(self) -> None:
        step_scaled(self.adam, self.draft.values, self.spread)

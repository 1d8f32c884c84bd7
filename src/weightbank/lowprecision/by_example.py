"""Weights in few bits, rounded so that the network goes on predicting what it predicted.

Rounding each weight to the nearest number is best as far as the loss rises by ½ Σ h δ², each weight for itself. But
weights act together, and errors that act together can cancel: weights are moved by about one step of their format,
straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), until predictions are again what they were. That is
distillation (Hinton et al. 2015, arXiv 1503.02531) of a network into its own rounding, in the spirit of adaptive
rounding (Nagel et al. 2020, arXiv 2004.10568). `paging.convert` does the same to all networks of a pool at once.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightbank.curvature.teaching import CHECKS, REACH, STEPS, divergence_on, mean_divergence, step_scaled
from weightbank.distributions.packed import Choice, PackedWeights, pack
from weightbank.errors import DataError, DivergedError
from weightbank.formats import Format
from weightbank.formats.spacing import RUN, step_sizes
from weightbank.layout import Layout
from weightbank.progress import progress
from weightbank.streams import split
from weightbank.task import Source, Task
from weightbank.training import half_cosine
from weightbank.types import Batches, Flat
from weightbank.undisturbed import undisturbed


@dataclass(frozen=True)
class ByExample:
    """Weights packed by example, and what that cost.

    Attributes:
        packed: the weights.
        nearest: how far predictions on held-back data are from those of the exact weights when each weight is rounded
            to the nearest number, as a rise of the loss (for a classification KL(p ‖ p'), nats per example).
        after: how far those of `packed` are.
        steps: optimizer steps taken. seconds: wall time.
    """

    packed: PackedWeights
    nearest: float
    after: float
    steps: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        costs = {"nearest": self.nearest, "after": self.after}
        return {"bytes": self.packed.nbytes, **costs, "steps": self.steps, "seconds": self.seconds}

    def __str__(self) -> str:
        return (
            f"{self.packed.nbytes:,} bytes: loss of the exact network's predictions up {self.after:.2g}, "
            f"rounded to nearest {self.nearest:.2g} ({self.steps:,} steps, {self.seconds:.1f} s)"
        )


def pack_by_example(
    task: Task,
    format: Choice | Mapping[str, Choice],
    path: str | Path | None = None,
    *,
    theta: Flat | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    steps: int = STEPS,
    validation: Source | None = None,
    seed: int = 0,
) -> ByExample:
    """`weightbank.pack`, with the weights rounded so that the network goes on predicting what it predicted.

    Labels are not looked at, unless the loss is of an unknown kind; dropout is off, BatchNorm statistics stay. Of the
    candidates seen, rounding to nearest among them, the one is kept whose predictions moved least on held-back training
    data. Keeps ten vectors of P numbers while it runs.

    Args:
        task: model, loss and training data. The model's own weights are not changed.
        format: for all parameters, or one for each by name, such as what `budget.mixed_precision` chose.
        path: a `.safetensors` file to write.
        theta: the exact weights, shape (P,), such as an average; by default the model's present ones.
        buffers: by name, what the model's buffers are with `theta`, e.g. refreshed BatchNorm statistics.
        steps: each with a minibatch. 0 rounds to nearest, and measures that.
        validation: data to judge by instead of held-back training data. Never pass test data.
        seed: of the order of the data, and of what is held back.

    Raises:
        FormatError, LayoutError, NonFiniteError: as `pack` does.
        DataError: for negative steps, and data from which nothing can be held back.
        DivergedError: when predictions or gradients are NaN or infinite.
    """
    start = time.monotonic()
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 0:
        raise DataError(f"steps={steps!r}; wanted a whole number that is not negative")
    exact = (task.theta() if theta is None else theta).detach().to(task.device, torch.float32)
    packed = pack(exact, task.layout, format)
    formats = {name: part.format for name, part in packed.parts.items()}
    with torch.enable_grad(), undisturbed(task.train, device=task.device, seed=seed):
        stream, held = split(task, seed=seed, validation=validation)
        run = _Run(task, exact, formats, buffers, int(steps))
        best, nearest = run.seen.clone(), run.moved(held)
        after = nearest
        taken = run.steps if bool((run.seen != exact).any()) else 0
        every = max(1, taken // CHECKS)
        with progress(f"{task.name}: rounding by example", taken) as bar:
            for number in range(taken):
                x, y = stream.next()
                run.step(x, y, number)
                bar.advance()
                if (number + 1) % every and number + 1 < taken:
                    continue
                found = run.moved(held)
                bar.note(f"loss up {found:.2g}, rounded to nearest {nearest:.2g}")
                if found < after:
                    best, after = run.seen.clone(), found
    return ByExample(pack(best, task.layout, format, path), nearest, after, taken, time.monotonic() - start)


class _Run:
    """Weights that are trained through their rounding, towards the predictions of exact ones."""

    def __init__(
        self,
        task: Task,
        exact: Flat,
        formats: Mapping[str, Format],
        buffers: Mapping[str, Tensor] | None,
        steps: int,
    ) -> None:
        self.task, self.exact, self.formats, self.buffers, self.steps = task, exact, formats, buffers, steps
        self.memory = nn.Parameter(exact.clone())
        self.adam = torch.optim.Adam([self.memory], lr=1.0)
        self.seen = rounded(exact, task.layout, formats)
        self.spread = torch.empty_like(exact)
        for entry in task.layout.entries:
            part = slice(entry.offset, entry.offset + entry.size)
            self.spread[part] = step_sizes(exact[part], self.seen[part], min(RUN, entry.size))

    def step(self, x: Any, y: Tensor, number: int) -> None:
        """One optimizer step; `DivergedError` for numbers that are not finite."""
        theta = self.seen.requires_grad_()
        far = mean_divergence(self.task.loss, self._predict(theta, x), self._taught(x), y)
        (self.memory.grad,) = torch.autograd.grad(far, theta)
        if not math.isfinite(float(far.detach()) + float(self.memory.grad.sum())):
            raise DivergedError(f"{self.task.name}: predictions or gradients are NaN or infinite at step {number}")
        for group in self.adam.param_groups:
            group["lr"] = 2 * REACH / self.steps * half_cosine(number, self.steps)
        step_scaled(self.adam, self.memory, self.spread)
        self.seen = rounded(self.memory.detach(), self.task.layout, self.formats)

    def moved(self, data: Batches) -> float:
        """How far predictions are from those of the exact weights, per unit of the loss."""
        return divergence_on(data, self.task, partial(self._predict, self.seen), self._taught)

    def _taught(self, x: Any) -> Any:
        with torch.no_grad():
            return self._predict(self.exact, x)

    def _predict(self, theta: Flat, x: Any) -> Any:
        return self.task.predict(theta, x, buffers=self.buffers)


def rounded(theta: Flat, layout: Layout, formats: Mapping[str, Format]) -> Flat:
    """Every parameter tensor of `theta` on the grid of its format, shape (P,)."""
    out = torch.empty_like(theta)
    for entry in layout.entries:
        part = slice(entry.offset, entry.offset + entry.size)
        out[part] = formats[entry.name].quantize(theta[part].view(entry.shape)).reshape(-1)
    return out

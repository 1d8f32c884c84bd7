"""The Gauss-Newton diagonal from squared gradients of random outputs: the price of training steps, any module.

One random vector r with E[r rᵀ] = H per batch makes E[(Jᵀ r)²] = diag(Jᵀ H J), cross terms between examples included:
they vanish in expectation. With r = ∂loss/∂z at labels drawn from the model this is the Gauss-Newton-Bartlett estimator
of Sophia (Liu et al. 2023, arXiv 2305.14342); with r = S ε, S Sᵀ = H and random signs ε, the rank-one estimate of
curvature propagation (Martens, Sutskever, Swersky 2012, arXiv 1206.6464).
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.curvature.held import holding, squaring
from weightbank.curvature.reading import batches
from weightbank.errors import DataError
from weightbank.progress import progress
from weightbank.task import Task
from weightbank.types import Flat, Inputs

FEWEST, ENOUGH, MOST = 600, 6_000, 60_000
"""Examples before the first look at the overlap; where a small data set may stop; where any does."""

COMPARED = 2**18
"""So many weights, drawn at random, stand for all of a larger model when two halves are compared."""


def ggn_sampled(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    probe: Literal["signs", "labels"] = "signs",
    top: float = 0.1,
    overlap: float = 0.85,
) -> Flat:
    """An unbiased estimate of the diagonal of Jᵀ H J / units, shape (P,), in loss per example per squared weight.

    H is the Hessian of the summed loss in the outputs, J their derivative in the weights, a unit one labelled position
    (classification) or one number (regression). Expected scores do not depend on the batch size.

    Each batch costs one forward and one backward pass, and gives one squared gradient: the relative standard deviation
    of a score is about √(2 / batches), so small batches say more per example. Beyond a training step it needs the
    scores, and of gradients only one at a time. The model runs in evaluation mode; its weights, gradients, buffers and
    training flags are as before afterwards, and so are the global random state and the loader's.

    Args:
        task: the model with its loss and training data.
        images: read so many training examples, in further passes with new random numbers if there are fewer. None
            goes on until the scores of the first and of the second half of what was read agree on the most important
            weights; that is asked at 600, 1,200, 2,400, ... examples. It ends at the latest with 60,000 examples, or
            with the first pass that brings the count to 6,000.
        batch_size: the most examples per squared gradient, 32 if None; larger loader batches are cut.
        generator: the source of random numbers; None is a fresh one with seed 0, so a repeated call gives the same.
        probe: "signs" uses the whole Hessian of each prediction; "labels" draws one label per prediction and is noisier
            the surer the model is.
        top: the fraction of weights that counts as most important.
        overlap: stop when this share of them is the same in both halves.

    Raises:
        CurvatureError: for a loss without known curvature, random outputs, augmented training data.
        DataError: for empty data and arguments out of range.
        NonFiniteError: for NaN or infinite outputs or scores.
    """
    if not 0 < top <= 1 or not 0 < overlap <= 1:
        raise DataError(f"top={top} and overlap={overlap} came; both are fractions, more than 0 and at most 1")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    with holding(task, generator) as held, progress(f"{task.name}: curvature", images) as bar:
        total, halves = held.zeros(), _Halves(task.layout.size, top, generator)
        seen, units = 0, 0.0
        with squaring(held, total) as squares:
            for x, y in _drawn(task, images, 32 if batch_size is None else batch_size):
                if seen == 0:
                    held.examine(x, y)
                head = held.checked_head(x, y)
                squares.add(head.z, head.signs(generator) if probe == "signs" else head.labels(generator))
                units += float(head.total)
                seen += len(y)
                bar.advance(len(y))
                if images is None and halves.share(total, seen) >= overlap:
                    break
        return held.mean(total, units)


def _drawn(task: Task, images: int | None, batch_size: int) -> Iterator[tuple[Inputs, Tensor]]:
    if images is not None:
        yield from batches(task, images, batch_size, again=True)
        return
    seen = 0
    while seen < ENOUGH:
        for x, y in batches(task, MOST - seen, batch_size):
            yield x, y
            seen += len(y)


class _Halves:
    """What the first and the second half of the examples so far say, asked each time their number has doubled."""

    def __init__(self, size: int, top: float, generator: torch.Generator) -> None:
        self._generator = generator
        self._chosen: Tensor | None = None
        self._top = max(1, round(top * min(size, COMPARED)))
        self._first, self._at = torch.empty(0), 0

    def share(self, total: Flat, seen: int) -> float:
        """The share of the most important weights that both halves name; 0 when it is not time to ask."""
        if seen < (2 * self._at if self._at else FEWEST // 2):
            return 0.0
        now = self._compared(total)
        first, self._first = self._first, now
        asked, self._at = self._at > 0, seen
        if not asked:
            return 0.0
        count = min(self._top, int((now > 0).sum()))
        named = torch.zeros_like(now, dtype=torch.bool)
        named[first.topk(count).indices] = True
        return float(named[(now - first).topk(count).indices].sum()) / count if count else 1.0

    def _compared(self, total: Flat) -> Float[Tensor, " Q"]:
        if len(total) <= COMPARED:
            return total.clone()
        if self._chosen is None:
            device = self._generator.device
            drawn = torch.randint(len(total), (COMPARED,), generator=self._generator, device=device)
            self._chosen = drawn.to(total.device)
        return total[self._chosen]

"""In-situ retraining: a chip keeps its errors, and training rewrites, unverified and counted, the cells it changes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from weightbank.cim.cells import WRITE, Cells
from weightbank.cim.ledger import Effort, Ledger
from weightbank.cim.process import WriteVerify
from weightbank.distributions.distribution import seed_of
from weightbank.errors import DataError, DivergedError
from weightbank.evaluation.estimate import Estimate
from weightbank.task import Task
from weightbank.types import Flat
from weightbank.undisturbed import undisturbed


@dataclass(frozen=True, eq=False)
class Retrained:
    """The weights (P,) that are on the chip afterwards, and the books of its cells (M, P), blank for digital ones."""

    theta: Flat
    ledger: Ledger


def retrain_in_situ(
    task: Task,
    cells: Cells,
    *,
    steps: int,
    learning_rate: float,
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
    each_step: Callable[[int, Flat, Ledger], object] | None = None,
) -> Retrained:
    """Program one chip, then train it where it is for `steps` mini-batches of `task.train`.

    Each step takes the gradient of the loss at the weights that are really on the chip, moves the wanted weights by
    SGD, and writes the cells whose level changes, each once: 1 pulse, a fresh error N(0, sigma²). Levels are those of
    the device's 2^N. Digital weights are trained, too, at no cost. Scales stay those of the first programming, so
    weights saturate there.

    each_step: called as f(step, theta, ledger) after every step, e.g. to evaluate or to stop by raising.

    Raises `DataError` for a device with pairs, faults, drift, read noise or conductance-dependent errors, or numbers
    out of range; `DivergedError` when the loss is no finite number.
    """
    if steps < 0:
        raise DataError(f"steps={steps}; wanted 0 or more")
    _check(cells, learning_rate, momentum)
    chip = _training(task, cells, learning_rate, momentum, seed_of(generator), 0)
    now = next(chip)
    for step in range(1, steps + 1):
        now = next(chip)
        if each_step is not None:
            each_step(step, now.theta, now.ledger)
    return now


@dataclass(frozen=True)
class Spent:
    """Retrained chips when a budget was spent: the score of each, and the average effort, in normalised write cycles.

    write_cycles: extra pulses as a fraction of those that verifying every cell takes. total_write_cycles: the same with
    first writes counted on both sides.
    """

    accuracy: Estimate
    write_cycles: float
    total_write_cycles: float


@dataclass(frozen=True, eq=False)
class Retraining:
    """In-situ retraining as a method of `sweep`, which asks what some chips score when a budget is spent.

    Args:
        task: the model with its loss and the training data.
        cells: the weights on the device.
        learning_rate: of SGD, in squared weights per loss.
        momentum: of SGD.
        chips: so many, three or more, each programmed once and trained on mini-batches in an order of its own.
        steps: the most mini-batches for a chip; what is then left of a budget stays unspent.
        process: what verifying a cell would take; `WriteVerify.matching` if None.

    Raises as `retrain_in_situ`, and for a device that has no matching process.
    """

    task: Task
    cells: Cells
    learning_rate: float = 0.003
    momentum: float = 0.0
    chips: int = 5
    steps: int = 1000
    process: WriteVerify | None = None

    def __post_init__(self) -> None:
        _check(self.cells, self.learning_rate, self.momentum)
        if self.chips < 3 or self.steps < 0:
            raise DataError(f"chips={self.chips}, steps={self.steps}; wanted at least 3 chips, and 0 or more steps")
        if not self.full.extra > 0:
            raise DataError("verifying everything takes no extra pulse on this device: there is no budget to spend")

    @cached_property
    def full(self) -> Effort:
        """The expected effort of verifying every cell of a chip."""
        device = self.cells.device
        process = self.process or WriteVerify.matching(device)
        return process.outcome(float(device.sigma)).effort(self.cells.count * device.cells)  # type: ignore[arg-type]

    def spent(self, budgets: Sequence[float], score: Callable[[Flat], float], seed: int = 0) -> dict[float, Spent]:
        """What `score` says of the chips when each of the `budgets` is spent, as far as whole steps go; by budget.

        Costs, for each chip, the steps and a score per budget. Equal seeds give equal chips and mini-batches.
        """
        chips = [self._chip(sorted(set(budgets)), score, seed, number) for number in range(self.chips)]
        found: dict[float, Spent] = {}
        for budget in chips[0]:
            scores, efforts = zip(*(chip[budget] for chip in chips), strict=True)
            effort = sum(efforts, Effort(0.0, 0.0)) * (1 / self.chips)
            cycles = effort.write_cycles(self.full), effort.total_write_cycles(self.full)
            found[budget] = Spent(Estimate.of(scores), *cycles)
        return found

    def _chip(
        self, budgets: list[float], score: Callable[[Flat], float], seed: int, number: int
    ) -> dict[float, tuple[float, Effort]]:
        """Score and effort of one chip at its last step within each budget."""
        task, found = self.task, dict[float, tuple[float, Effort]]()
        with undisturbed(task.train, device=task.device, seed=seed + number):
            chip = _training(task, self.cells, self.learning_rate, self.momentum, seed, number)
            now, step = next(chip), 0
            while len(found) < len(budgets):
                following = next(chip) if step < self.steps else None
                reached = math.inf if following is None else following.ledger.effort.write_cycles(self.full)
                over = [budget for budget in budgets[len(found) :] if reached > budget]
                if over:
                    found |= dict.fromkeys(over, (score(now.theta), now.ledger.effort))
                if following is not None:
                    now, step = following, step + 1
        return found


def _check(cells: Cells, learning_rate: float, momentum: float) -> None:
    device = cells.device
    plain = device.uniform and device.gaussian and not (device.pairs or device.read_noise or device.drift)
    if not plain or not 0 < learning_rate < math.inf or not 0 <= momentum < 1:
        raise DataError(
            f"learning_rate={learning_rate}, momentum={momentum} on {device}; wanted a positive learning rate, a "
            "momentum from 0 to below 1, and a device with plain errors (no pairs, faults, drift or read noise)"
        )


def _training(
    task: Task, cells: Cells, learning_rate: float, momentum: float, seed: int, number: int
) -> Iterator[Retrained]:
    """Chip `number` of a seed as it was programmed, and after each step, without end."""
    sigma = float(cells.device.sigma)  # type: ignore[arg-type]
    wanted, speed = cells.theta.clone(), torch.zeros_like(cells.theta)
    levels = _levels(wanted, cells)
    streams = [cells.stream(seed, number, WRITE, row) for row in range(cells.device.cells)]
    ledger = Ledger.written_once(_errors(levels, streams, sigma), cells.on_device)
    theta = _theta(wanted, levels, ledger, cells)
    yield Retrained(theta, ledger)
    batches = task.batches("train")
    while True:
        batch = next(batches, None)
        if batch is None:
            batches = task.batches("train")
            batch = next(batches)
        gradient = _gradient(task, theta, *batch)
        speed = momentum * speed + gradient
        wanted = wanted - learning_rate * speed
        new = _levels(wanted, cells)
        changed = (new != levels) & cells.on_device
        ledger = ledger.rewritten(changed, torch.where(changed, _errors(levels, streams, sigma), ledger.errors))
        levels = new
        theta = _theta(wanted, levels, ledger, cells)
        yield Retrained(theta, ledger)


def _levels(wanted: Flat, cells: Cells) -> Int32[Tensor, "M P"]:
    """Signed whole levels of each cell."""
    device = cells.device
    steps = 2**device.weight_bits
    relative = torch.where(cells.scale > 0, wanted.abs() / cells.scale, 0.0)
    rest = (relative * steps).round().clamp(max=steps - 1) / steps
    rows = []
    for _ in device.places:
        rest = rest * 2**device.cell_bits
        rows.append(rest.floor())
        rest = rest - rows[-1]
    return torch.where(wanted < 0, -torch.stack(rows), torch.stack(rows)).to(torch.int32)


def _errors(like: Tensor, streams: list[torch.Generator], sigma: float) -> Float[Tensor, "M P"]:
    return sigma * torch.stack([torch.randn(like.shape[1], generator=stream) for stream in streams])


def _theta(wanted: Flat, levels: Int32[Tensor, "M P"], ledger: Ledger, cells: Cells) -> Flat:
    places = torch.tensor(cells.device.places, dtype=wanted.dtype)
    value = places @ (levels + ledger.errors).to(wanted.dtype)
    return torch.where(cells.on_device, value * cells.scale, wanted)


def _gradient(task: Task, theta: Flat, x: object, y: Tensor) -> Flat:
    free = theta.to(task.device).requires_grad_()
    loss = task.loss(task.predict(free, x), y)  # type: ignore[arg-type]
    if not bool(loss.isfinite()):
        raise DivergedError(f"{task.name}: loss is {float(loss.detach())}; lower the learning rate")
    (gradient,) = torch.autograd.grad(loss, free)
    return gradient.to("cpu")

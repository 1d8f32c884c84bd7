"""In-situ retraining: a chip keeps its errors, and training rewrites, unverified and counted, the cells it changes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from weightbank.cim.cells import WRITE, Cells
from weightbank.cim.ledger import Ledger
from weightbank.distributions.distribution import seed_of
from weightbank.errors import DataError, DivergedError
from weightbank.task import Task
from weightbank.types import Flat


@dataclass(frozen=True, eq=False)
class Retrained:
    """The weights (P,) that are on the chip afterwards, and the books of its cells (M, P)."""

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
    device = cells.device
    plain = device.uniform and device.gaussian and not (device.pairs or device.read_noise or device.drift)
    if not plain or steps < 0 or not learning_rate > 0 or not 0 <= momentum < 1:
        raise DataError(
            f"steps={steps}, learning_rate={learning_rate}, momentum={momentum} on {device}; wanted positive numbers, "
            "momentum below 1, and a device with plain errors (no pairs, faults, drift or read noise)"
        )
    seed, sigma = seed_of(generator), float(device.sigma)  # type: ignore[arg-type]
    wanted, speed = cells.theta.clone(), torch.zeros_like(cells.theta)
    levels = _levels(wanted, cells)
    streams = [cells.stream(seed, 0, WRITE, row) for row in range(device.cells)]
    ledger = Ledger.written_once(_errors(levels, streams, sigma))
    theta = _theta(wanted, levels, ledger, cells)
    batches = task.batches("train")
    for step in range(1, steps + 1):
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
        if each_step is not None:
            each_step(step, theta, ledger)
    return Retrained(theta, ledger)


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

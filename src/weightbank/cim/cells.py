"""One weight vector laid out on the cells of a device: levels, moments of what is read, draws of single cells."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightbank.cim.device import Device
from weightbank.distributions.gaussian import stream
from weightbank.errors import LayoutError, NonFiniteError
from weightbank.layout import Layout
from weightbank.task import Task
from weightbank.types import Flat

Number: TypeAlias = float | Float[Tensor, "*P"]

WHOLE, WRITE, STUCK, DRIFT, VERIFY, READ = range(6)
"""What a stream of random numbers is for; each use, cell and side of a pair has a stream of its own."""


ErrorMoments: TypeAlias = Callable[[int, Flat | None], tuple[Number, Number]]
"""(row, level) to mean and variance of the written error of cell `row`, from 0, that should hold `level` (P,)."""

DrawnErrors: TypeAlias = Callable[[int, int, Flat, Flat | None], Flat]
"""(row, side, level, held) to the errors (P,) of cell `row` on one side of its pair, which should hold `level`. `held`
is the level a stuck cell has whatever is written, NaN for healthy cells; None if all are healthy."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The P weights `theta` on the M cells of each that `device` has; nothing of size (M, P) is held."""

    device: Device
    layout: Layout
    theta: Flat

    @classmethod
    def of(cls, place: Task | Layout, device: Device, theta: Flat | None = None) -> "Cells":
        """The present weights of a task, or `theta` of shape (P,), in main memory.

        Raises `LayoutError` for a layout without `theta` and `NonFiniteError` for NaN or infinite weights.
        """
        layout = place.layout if isinstance(place, Task) else place
        if theta is None:
            if not isinstance(place, Task):
                raise LayoutError("a layout has no weights of its own: pass theta=, or a task")
            theta = place.theta()
        layout.check(theta)
        theta = theta.detach().to("cpu")
        if not bool(theta.isfinite().all()):
            raise NonFiniteError(f"{int((~theta.isfinite()).sum())} of {layout.size} weights are NaN or infinite")
        return cls(device, layout, theta if theta.dtype == torch.float64 else theta.to(torch.float32))

    @cached_property
    def on_device(self) -> Bool[Tensor, " P"]:
        """Which weights are on the device."""
        return self.device.on_device(self.layout)

    @cached_property
    def count(self) -> int:
        """How many weights are on the device."""
        return int(self.on_device.count_nonzero())

    @cached_property
    def scale(self) -> Flat:
        """The scale of each weight, zero for digital ones."""
        return self.device.scales(self.theta, self.layout)

    @cached_property
    def signed_scale(self) -> Flat:
        """The scale with the weight's sign (zero counts as positive)."""
        return torch.where(self.theta < 0, -self.scale, self.scale)

    @cached_property
    def relative(self) -> Flat:
        """|w| / scale in [0, 1], zero for digital weights."""
        return torch.where(self.scale > 0, self.theta.abs() / self.scale, 0.0)

    def target(self) -> Flat:
        """What the device should hold in units of the scale, shape (P,): `relative`, rounded if it is quantized."""
        if not self.device.quantized:
            return self.relative
        steps = 2**self.device.weight_bits
        target: Flat = (self.relative * steps).round().clamp(max=steps - 1) / steps
        return target

    def levels(self) -> Iterator[Flat | None]:
        """The levels of cell 1, 2, ... M, each (P,), from 0 to 2^m - 1; None where they do not matter.

        Whole numbers, but for the last cell of a device that is not quantized, which holds the rest.
        """
        device = self.device
        if not device.needs_levels:
            yield from [None] * device.cells
            return
        rest = self.target()
        for row in range(device.cells):
            rest = rest * 2**device.cell_bits
            level = rest if row == device.cells - 1 else rest.floor().clamp(max=device.top)
            rest = rest - level
            yield level

    def moments(self, error: ErrorMoments) -> tuple[Flat, Flat]:
        """Mean and variance of the weights, each (P,), from those of each cell's written error; exact.

        With stuck cells each is a mixture of three; drift multiplies; one read of one inference is part of it.
        """
        device = self.device
        mean, variance = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        for row, level in enumerate(self.levels()):
            first, second = self._settled(level, *error(row, level))
            if device.pairs:
                empty = None if level is None else torch.zeros_like(level)
                less, more = self._settled(empty, *error(row, empty))
                first, second = first - less, second + more
            place = device.places[row]
            mean += place * first
            variance += place**2 * (second + device.sides * device.read_noise**2)
        if not device.needs_levels:
            return self.theta, variance * self.scale.square()
        factor = self.gain * self.signed_scale
        return torch.where(self.on_device, factor * mean, self.theta), variance * factor.square()

    def draw(self, seed: int, number: int, errors: DrawnErrors, *, read: bool = True) -> Flat:
        """The weights of chip `number` of a seed, shape (P,), cell by cell: written, stuck, drifted and read."""
        device = self.device
        total = torch.zeros_like(self.theta)
        for row, level in enumerate(self.levels()):
            for side in range(device.sides):
                held = torch.zeros_like(self.theta) if level is None or side else level
                value = self._cell(seed, number, row, side, held, errors, read)
                total.add_(value, alpha=device.places[row] * (-1) ** side)
        start = 0.0 if device.needs_levels else self.theta
        return torch.where(self.on_device, start + self.gain * self.signed_scale * total, self.theta)

    def reading(self) -> Flat | None:
        """Standard deviation of each weight from one inference to the next, shape (P,); None without read noise."""
        device = self.device
        if not device.read_noise:
            return None
        squares = device.sides * math.fsum(place**2 for place in device.places)
        return self.scale * (device.read_noise * math.sqrt(squares))

    def stream(self, seed: int, number: int, use: int, row: int = 0, side: int = 0) -> torch.Generator:
        """The generator of one use, cell and side of chip `number`; equal for every programming of the same seed."""
        return stream(seed, number, use + 8 * (2 * row + side))

    @cached_property
    def gain(self) -> Number:
        """What the read-out multiplies each weight with: one, or the mean fall of its tensor by drift undone."""
        drift = self.device.drift
        if drift is None or not drift.compensated:
            return 1.0
        gain, wanted, fallen = torch.ones_like(self.theta), torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        for place, level in zip(self.device.places, self.levels(), strict=True):
            assert level is not None
            wanted += place * level
            fallen += place * level * drift.moments((level / self.device.top).clamp(0, 1))[0]
        for entry in self.layout.entries:
            place_ = slice(entry.offset, entry.offset + entry.size)
            total = float((fallen[place_] * self.scale[place_]).sum())
            if total > 0:
                gain[place_] = float((wanted[place_] * self.scale[place_]).sum()) / total
        return gain

    def _settled(self, level: Flat | None, bias: Number, variance: Number) -> tuple[Number, Number]:
        """Mean and variance of a cell after faults and drift; without levels, of its error alone."""
        device = self.device
        if level is None:
            return bias, variance
        mean = level + bias
        stuck = device.stuck_low + device.stuck_high
        if stuck:
            square = (1 - stuck) * (variance + mean * mean) + device.stuck_high * device.top**2
            mean = (1 - stuck) * mean + device.stuck_high * device.top
            variance = square - mean * mean
        if device.drift is not None:
            first, second = device.drift.moments((level / device.top).clamp(0, 1))
            variance = second * (variance + mean * mean) - (first * mean) ** 2
            mean = first * mean
        return mean, variance

    def _cell(self, seed: int, number: int, row: int, side: int, level: Flat, errors: DrawnErrors, read: bool) -> Flat:
        """The values, shape (P,), of one cell of every weight."""
        device, dtype = self.device, self.theta.dtype
        held = None
        if device.stuck_low + device.stuck_high:
            uniform = torch.rand(len(level), generator=self.stream(seed, number, STUCK, row, side), dtype=dtype)
            high = torch.where(uniform < device.stuck_low + device.stuck_high, float(device.top), torch.nan)
            held = torch.where(uniform < device.stuck_low, 0.0, high)
        value = level + errors(row, side, level, held)
        if device.drift is not None:
            exponent, spread = device.drift.exponents((level / device.top).clamp(0, 1))
            if device.drift.random:
                generator = self.stream(seed, number, DRIFT, row, side)
                exponent = exponent + spread * torch.randn(len(level), generator=generator, dtype=dtype)
            value = value * (-device.drift.log_time * exponent).exp()
        if read and device.read_noise:
            generator = self.stream(seed, number, READ, row, side)
            value = value + device.read_noise * torch.randn(len(level), generator=generator, dtype=dtype)
        return value

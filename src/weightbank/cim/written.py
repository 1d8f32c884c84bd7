"""A chip whose cells went through write-verify: draws are simulated pulse by pulse, and everything is counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from weightbank.cim.cells import WHOLE, Cells, Number
from weightbank.cim.compensate import Compensated, compensated
from weightbank.cim.device import Device
from weightbank.cim.ledger import Effort, Ledger
from weightbank.cim.process import Outcome, WriteVerify
from weightbank.cim.rule import Rule, written_cells
from weightbank.distributions.distribution import seed_of
from weightbank.errors import DataError, LayoutError
from weightbank.layout import Layout
from weightbank.types import Draws, Flat

CHIPS = 256
"""Chips behind the mean and variance of compensated weights, which have no closed form."""


@dataclass(frozen=True, eq=False)
class Written:
    """The law of θ on a device programmed by `process` under `rule`.

    Unread cells of a weight share one standard normal; read ones are simulated singly. With `absorb`, a mask (P,), the
    marked weights are written one cell after the other, and each takes up the error that was read on those before it.

    Raises `DataError` for a device whose sigma is not a number, and for compensation on one with faults or drift;
    `LayoutError` for a rule of another shape.
    """

    cells: Cells
    process: WriteVerify
    rule: Rule
    absorb: Bool[Tensor, " P"] | None = None

    def __post_init__(self) -> None:
        device, size = self.cells.device, self.layout.size
        if not device.uniform:
            raise DataError(
                "a simulated process needs one number as sigma; conductance-dependent errors need program()"
            )
        if tuple(self.rule.grades.shape) not in ((size,), (device.cells, size)):
            raise LayoutError(
                f"a rule of shape {tuple(self.rule.grades.shape)} came; wanted ({size},) or ({device.cells}, {size})"
            )
        if self.absorb is not None and not self._plain:
            raise DataError("compensation reads cells back, which stuck or drifting cells would mislead; take it out")

    @property
    def layout(self) -> Layout:
        """Which weight stands where."""
        return self.cells.layout

    @property
    def device(self) -> Device:
        """What it was programmed on."""
        return self.cells.device

    @property
    def effort(self) -> Effort:
        """What programming one chip is expected to take, by `WriteVerify.outcome`."""
        total = Effort(0.0, 0.0)
        for row in range(self.device.cells):
            counts = torch.bincount(self.rule.row(row)[self.cells.on_device], minlength=len(self.rule.limits))
            for grade, count in enumerate(counts.tolist()):
                total = total + self._outcome(grade).effort(self.device.sides * count)
        if self.absorb is not None:
            known = self.device.sides * len(self._absorbing) * (self.device.cells - 1)
            total = total + Effort(0.0, 0.0, known)
        return total

    def mean(self) -> Flat:
        """E[θ], shape (P,); of compensated weights the mean over 256 chips."""
        return self._moments[0]

    def variance(self) -> Flat:
        """The variances, shape (P,); exact, but for compensated weights, where it is that of 256 chips (±9 %)."""
        return self._moments[1]

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` chips, shape (S, P)."""
        out = torch.empty(count, self.layout.size, dtype=self.cells.theta.dtype)
        for row, theta in zip(out, self.draws(count, generator=generator), strict=True):
            row.copy_(theta)
        return out

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same chips one at a time."""
        seed = seed_of(generator)
        for number in range(count):
            yield self._draw(seed, number).theta

    def write(self, *, generator: torch.Generator | None = None) -> tuple[Flat, Ledger]:
        """One chip with the books of every cell, (M, P), or (2, M, P) for differential pairs; digital ones are blank.

        The chip is not the one `draws` gives for the same seed: here every cell has its own random numbers.
        """
        drawn = self._draw(seed_of(generator), 0, every=True)
        shape = (self.device.sides, self.device.cells, self.layout.size)
        whole = Ledger(
            torch.zeros(shape, dtype=self.cells.theta.dtype),
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(shape, dtype=torch.bool),
        )
        for row, side, places, part in drawn.books:
            for name in ("errors", "pulses", "reads", "failed"):
                getattr(whole, name)[side, row, places] = getattr(part, name)
        if self.device.pairs:
            return drawn.theta, whole
        return drawn.theta, Ledger(whole.errors[0], whole.pulses[0], whole.reads[0], whole.failed[0])

    def counted(self, chips: int, *, generator: torch.Generator | None = None) -> Effort:
        """The average effort of so many simulated chips."""
        seed, total = seed_of(generator), Effort(0.0, 0.0)
        for number in range(chips):
            for _, _, _, part in self._draw(seed, number, every=True).books:
                total = total + part.effort
        return total * (1 / chips)

    def at_rest(self) -> tuple["Written", Flat | None]:
        """The same law without read noise, and the standard deviation (P,) that each inference adds; None if none."""
        if not self.device.read_noise:
            return self, None
        cells = replace(self.cells, device=replace(self.device, read_noise=0.0))
        return Written(cells, self.process, self.rule, self.absorb), self.cells.reading()

    def one(self, row: int, side: int, places: Tensor, seed: int, number: int, held: Tensor | None = None) -> Ledger:
        """Write and verify one cell of some weights; see `written_cells`."""
        return written_cells(
            self.cells, self.process, self.rule, row, side, places, seed=seed, number=number, held=held
        )

    @property
    def _plain(self) -> bool:
        """Whether errors reach the weights as they are, so that those of unread cells add up to one normal."""
        return self.device.gaussian and self.device.drift is None

    def _compensated(self, seed: int, number: int) -> Compensated:
        return compensated(self.cells, self.process, self.rule, self._absorbing, seed=seed, number=number)

    @cached_property
    def _absorbing(self) -> Int64[Tensor, " A"]:
        if self.absorb is None:
            return torch.zeros(0, dtype=torch.int64)
        return (self.absorb & self.cells.on_device).nonzero()[:, 0]

    def _outcome(self, grade: int) -> Outcome:
        sigma = float(self.device.sigma)  # type: ignore[arg-type]
        return self.process.outcome(sigma, limit=self.rule.limits[grade], tolerance=self.rule.tolerances[grade])

    @cached_property
    def _moments(self) -> tuple[Flat, Flat]:
        variances = self.cells.theta.new_tensor(
            [self._outcome(grade).variance for grade in range(len(self.rule.limits))]
        )

        def error(row: int, level: Flat | None) -> tuple[Number, Number]:
            return 0.0, variances[self.rule.row(row).long()]

        mean, variance = self.cells.moments(error)
        if len(self._absorbing):
            mean, variance = mean.clone(), variance.clone()
            drawn = torch.stack([self._compensated(0, number).weights for number in range(CHIPS)])
            mean[self._absorbing] = drawn.mean(0)
            reading = self.cells.reading()
            noise = 0.0 if reading is None else reading[self._absorbing].square()
            variance[self._absorbing] = drawn.var(0) + noise
        return mean, variance

    @cached_property
    def _unread(self) -> tuple[Flat, Flat]:
        """Mean, and standard deviation of what the unread cells add, with the noise of one inference."""
        variance = float(self.device.sigma) ** 2  # type: ignore[arg-type]

        def error(row: int, level: Flat | None) -> tuple[Number, Number]:
            return 0.0, torch.where(self.rule.row(row) > 0, 0.0, variance)

        mean, variances = self.cells.moments(error)
        reading = self.cells.reading()
        if len(self._absorbing):
            variances[self._absorbing] = 0.0 if reading is None else reading[self._absorbing].square()
        return mean, variances.sqrt()

    @cached_property
    def _read_cells(self) -> list[Int64[Tensor, " K"]]:
        """For each cell of a weight, the weights where it is read."""
        single = self.cells.on_device if self.absorb is None else self.cells.on_device & ~self.absorb
        return [((self.rule.row(row) > 0) & single).nonzero()[:, 0] for row in range(self.device.cells)]

    def _draw(self, seed: int, number: int, *, every: bool = False) -> "Drawn":
        """Chip `number` of a seed; with `every`, unread cells are drawn singly too, so that the books are complete."""
        drawn = Drawn(self.cells.theta)
        if not self._plain:
            drawn.theta = self.cells.draw(seed, number, _Dense(self, seed, number, drawn))
            return drawn
        mean, deviation = self._unread
        single = self.cells.on_device if self.absorb is None else self.cells.on_device & ~self.absorb
        if every:
            reading = self.cells.reading()
            deviation = torch.zeros_like(mean) if reading is None else reading
        normal = torch.randn(len(mean), generator=self.cells.stream(seed, number, WHOLE), dtype=mean.dtype)
        drawn.theta = torch.addcmul(mean, deviation, normal)
        for row in range(self.device.cells):
            places = single.nonzero()[:, 0] if every else self._read_cells[row]
            for side in range(self.device.sides if len(places) else 0):
                part = self.one(row, side, places, seed, number)
                step = self.device.places[row] * (-1) ** side
                drawn.theta.index_add_(0, places, part.errors * self.cells.signed_scale[places], alpha=step)
                drawn.books.append((row, side, places, part))
        if len(self._absorbing):
            result = self._compensated(seed, number)
            drawn.theta[self._absorbing] += result.weights - mean[self._absorbing]
            drawn.books += [(row, side, self._absorbing, part) for row, side, part in result.books]
        return drawn


@dataclass
class Drawn:
    """One chip's weights and the books of the cells that were simulated singly: (row, side, weights, ledger)."""

    theta: Flat
    books: list[tuple[int, int, Tensor, Ledger]] = field(default_factory=list)


@dataclass(frozen=True)
class _Dense:
    """The written errors of every weight's cell, for devices with faults or drift."""

    law: Written
    seed: int
    number: int
    drawn: Drawn

    def __call__(self, row: int, side: int, level: Flat, held: Flat | None) -> Flat:
        law, places = self.law, self.law.cells.on_device.nonzero()[:, 0]
        fixed = None if held is None else (held - level)[places]
        part = law.one(row, side, places, self.seed, self.number, fixed)
        self.drawn.books.append((row, side, places, part))
        return torch.zeros_like(level).index_copy_(0, places, part.errors)

"""A chip whose cells went through write-verify: draws are simulated pulse by pulse, and everything is counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightbank.cim.cells import VERIFY, WHOLE, WRITE, Number
from weightbank.cim.compensate import Compensated, compensated
from weightbank.cim.law import OnCells
from weightbank.cim.ledger import Effort, Ledger
from weightbank.cim.process import Outcome, WriteVerify
from weightbank.cim.rule import Rule, written_cells
from weightbank.distributions.distribution import seed_of
from weightbank.errors import DataError, LayoutError
from weightbank.types import Flat

CHIPS = 256
"""Chips behind the mean and variance of compensated weights, which have no closed form."""


@dataclass(frozen=True, eq=False)
class Written(OnCells):
    """The law of θ on a device programmed by `process` under `rule`.

    Unread cells of a weight share one standard normal; read ones are simulated singly. With `absorb`, a mask (P,), the
    marked weights are written one cell after the other, and each takes up the error that was read on those before it;
    their mean and variance have no closed form and are those of 256 chips (the variance to ±9 %).

    Raises `DataError` for a device whose sigma is not a number, and for compensation on one with faults or drift;
    `LayoutError` for a rule of another shape.
    """

    process: WriteVerify
    rule: Rule
    absorb: Bool[Tensor, " P"] | None = None

    def __post_init__(self) -> None:
        device, size = self.cells.device, self.layout.size
        if not device.uniform:
            raise DataError(
                "a simulated process needs a number as sigma; for conductance-dependent errors use program()"
            )
        if tuple(self.rule.grades.shape) not in ((size,), (device.cells, size)):
            raise LayoutError(
                f"a rule of shape {tuple(self.rule.grades.shape)} came; wanted ({size},) or ({device.cells}, {size})"
            )
        if self.absorb is not None and not self._plain:
            raise DataError("compensation reads cells back, which stuck or drifting cells would mislead; take it out")

    @property
    def effort(self) -> Effort:
        """What programming a chip is expected to take, by `WriteVerify.outcome`; for stuck cells see `counted`."""
        total = Effort(0.0, 0.0)
        for row in range(self.device.cells):
            counts = torch.bincount(self.rule.row(row)[self.cells.on_device], minlength=len(self.rule.limits))
            for grade, count in enumerate(counts.tolist()):
                total = total + self._outcome(grade).effort(self.device.sides * count)
        if self.absorb is not None:
            known = self.device.sides * len(self._absorbing) * (self.device.cells - 1)
            total = total + Effort(0.0, 0.0, known)
        return total

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same chips one at a time."""
        seed = seed_of(generator)
        for number in range(count):
            yield self._draw(seed, number)

    def write(self, *, generator: torch.Generator | None = None) -> tuple[Flat, Ledger]:
        """One chip with the books of every cell, (M, P), or (2, M, P) for differential pairs; digital ones are blank.

        The chip is not the one `draws` gives for the same seed: here every cell has its own random numbers.
        """
        booked = self._booked(seed_of(generator), 0)
        shape = (self.device.sides, self.device.cells, self.layout.size)
        whole = Ledger(
            torch.zeros(shape, dtype=self.cells.theta.dtype),
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(shape, dtype=torch.bool),
        )
        for row, side, places, part in booked.parts:
            for name in ("errors", "pulses", "reads", "failed"):
                getattr(whole, name)[side, row, places] = getattr(part, name)
        if self.device.pairs:
            return booked.theta, whole
        return booked.theta, Ledger(whole.errors[0], whole.pulses[0], whole.reads[0], whole.failed[0])

    def counted(self, chips: int, *, generator: torch.Generator | None = None) -> Effort:
        """The average effort of so many simulated chips."""
        seed, total = seed_of(generator), Effort(0.0, 0.0)
        for number in range(chips):
            for _, _, _, part in self._booked(seed, number).parts:
                total = total + part.effort
        return total * (1 / chips)

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
    def _single(self) -> Bool[Tensor, " P"]:
        """The weights on the device that are not compensated."""
        return self.cells.on_device if self.absorb is None else self.cells.on_device & ~self.absorb

    @cached_property
    def _read(self) -> "_ReadCells":
        limits, tolerances = (
            torch.tensor(x, dtype=self.cells.theta.dtype) for x in (self.rule.limits, self.rule.tolerances)
        )
        places, steps, grades = [], [], []
        for row, place in enumerate(self.device.places):
            here = ((self.rule.row(row) > 0) & self._single).nonzero()[:, 0]
            for side in range(self.device.sides):
                places.append(here)
                steps.append(self.cells.signed_scale[here] * (place * (-1) ** side))
                grades.append(self.rule.row(row)[here].long())
        grade = torch.cat(grades)
        return _ReadCells(torch.cat(places), torch.cat(steps), limits[grade], tolerances[grade])

    def _draw(self, seed: int, number: int) -> Flat:
        """Chip `number` of a seed: one normal for the unread cells of a weight, read cells simulated singly."""
        if not self._plain:
            return self._booked(seed, number).theta
        mean, deviation = self._unread
        normal = torch.randn(len(mean), generator=self.cells.stream(seed, number, WHOLE), dtype=mean.dtype)
        theta = torch.addcmul(mean, deviation, normal)
        read = self._read
        if len(read.places):
            first = torch.randn(len(read.places), generator=self.cells.stream(seed, number, WRITE), dtype=mean.dtype)
            sigma = float(self.device.sigma)  # type: ignore[arg-type]
            generator = self.cells.stream(seed, number, VERIFY)
            found = self.process.run(
                sigma * first, sigma, limit=read.limits, tolerance=read.tolerances, generator=generator
            )
            theta.index_add_(0, read.places, found.errors * read.steps)
        if len(self._absorbing):
            theta[self._absorbing] += self._compensated(seed, number).weights - mean[self._absorbing]
        return theta

    def _booked(self, seed: int, number: int) -> "Booked":
        """A chip of which every cell is drawn singly, so that the books are complete."""
        booked = Booked(self.cells.theta)
        if not self._plain:
            booked.theta = self.cells.draw(seed, number, _Dense(self, seed, number, booked))
            return booked
        mean, reading = self._unread[0], self.cells.reading()
        booked.theta = mean.clone()
        if reading is not None:
            normal = torch.randn(len(mean), generator=self.cells.stream(seed, number, WHOLE), dtype=mean.dtype)
            booked.theta.addcmul_(reading, normal)
        places = self._single.nonzero()[:, 0]
        for row, place in enumerate(self.device.places):
            for side in range(self.device.sides):
                part = self.one(row, side, places, seed, number)
                step = place * (-1) ** side
                booked.theta.index_add_(0, places, part.errors * self.cells.signed_scale[places], alpha=step)
                booked.parts.append((row, side, places, part))
        if len(self._absorbing):
            result = self._compensated(seed, number)
            booked.theta[self._absorbing] += result.weights - mean[self._absorbing]
            booked.parts += [(row, side, self._absorbing, part) for row, side, part in result.books]
        return booked


@dataclass(frozen=True)
class _ReadCells:
    """The K cells that are read: their weights, what a level step of each adds to its weight, limits and tolerances."""

    places: Int64[Tensor, " K"]
    steps: Float[Tensor, " K"]
    limits: Float[Tensor, " K"]
    tolerances: Float[Tensor, " K"]


@dataclass
class Booked:
    """One chip's weights and the books of its cells: (row, side, weights, ledger)."""

    theta: Flat
    parts: list[tuple[int, int, Tensor, Ledger]] = field(default_factory=list)


@dataclass(frozen=True)
class _Dense:
    """The written errors of every weight's cell, for devices with faults or drift."""

    law: Written
    seed: int
    number: int
    booked: Booked

    def __call__(self, row: int, side: int, level: Flat, held: Flat | None) -> Flat:
        law, places = self.law, self.law.cells.on_device.nonzero()[:, 0]
        fixed = None if held is None else (held - level)[places]
        part = law.one(row, side, places, self.seed, self.number, fixed)
        self.booked.parts.append((row, side, places, part))
        return torch.zeros_like(level).index_copy_(0, places, part.errors)

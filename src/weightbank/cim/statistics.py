"""How wide the errors of a cell are at each conductance: published fits, tables of measurements, drift exponents.

A spread maps conductances g, as fractions of the cell's range (0 empty, 1 full), to standard deviations in the same
unit. Fits are in microsiemens, as published.
"""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.errors import DataError

Conductances: TypeAlias = Float[Tensor, " P"]
Spread: TypeAlias = float | str | Callable[[Tensor], Tensor]
"""A number (in level steps), the name of a published fit, a `Table`, or any function of g."""

LIMIT = 64 << 20
"""The largest file of measurements that is read, in bytes."""


@dataclass(frozen=True)
class Fit:
    """A standard deviation in microsiemens, a polynomial of the conductance in microsiemens, never below zero.

    coefficients: of powers 0, 1, 2, ...
    largest: the full conductance.
    """

    coefficients: tuple[float, ...]
    largest: float

    def __call__(self, g: Conductances) -> Conductances:
        """The standard deviation at g, as a fraction of `largest`."""
        x, total = g * self.largest, torch.zeros_like(g)
        for coefficient in reversed(self.coefficients):
            total = total * x + coefficient
        return total.clamp(min=0) / self.largest


FITS: Mapping[str, Fit] = MappingProxyType(
    {
        "pcm_aihwkit": Fit((0.2635, 1.9650 / 25, -1.1731 / 625), 25.0),
        "pcm_joshi": Fit((0.28638599, 0.07585724, -0.00178767), 25.0),
        "rram_wan": Fit((1.053, 0.2374, -1.167e-2, 1.536e-4), 39.26),
    }
)
"""Programming errors of real cells.

`pcm_aihwkit`: phase-change memory, the fit of the IBM Analog Hardware Acceleration Kit's PCM model.
`pcm_joshi`: phase-change memory, Joshi et al. 2020 (Nature Communications 11:2473, Fig. 3b), CrossSim's fit.
`rram_wan`: resistive memory one second after programming, Wan et al. 2022 (Nature 608), CrossSim's fit.
"""


@dataclass(frozen=True)
class Table:
    """Measured mean errors and standard deviations at some conductances, linear between them and flat beyond.

    All three as fractions of the range; `targets` increase.
    """

    targets: tuple[float, ...]
    errors: tuple[float, ...]
    stds: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.targets, self.targets[1:], strict=False))
        numbers = (*self.targets, *self.errors, *self.stds)
        if not self.targets or not rising or not len(self.targets) == len(self.errors) == len(self.stds):
            raise DataError(
                f"a table of {len(self.targets)} targets, {len(self.errors)} errors and {len(self.stds)} standard "
                "deviations; wanted equally many, at least one, and targets that increase"
            )
        if not all(math.isfinite(number) for number in numbers) or min(self.stds) < 0:
            raise DataError("a table holds numbers that are not finite, or negative standard deviations")

    def __call__(self, g: Conductances) -> Conductances:
        """The standard deviation at g."""
        return _interpolated(g, self.targets, self.stds)

    def bias(self, g: Conductances) -> Conductances:
        """The mean error at g."""
        return _interpolated(g, self.targets, self.errors)

    @classmethod
    def read(cls, path: str | Path, *, largest: float | None = None, cycle: int | None = None) -> "Table":
        """Measurements from a CSV file with columns `target` and `actual`, and perhaps `cycle`, in any unit.

        largest: the full conductance in that unit; the largest target if None.
        cycle: take only the rows of this cycle; all rows if None.

        Each target's error is the mean of actual - target, its deviation the unbiased standard deviation. Raises
        `DataError` for missing columns, text that is no number, fewer than two rows for a target, a file above 64 MB.
        """
        path = Path(path)
        groups: dict[float, list[float]] = {}
        for number, row in enumerate(_rows(path), start=2):
            try:
                if cycle is not None and int(float(row["cycle"])) != cycle:
                    continue
                groups.setdefault(float(row["target"]), []).append(float(row["actual"]) - float(row["target"]))
            except KeyError as error:
                raise DataError(
                    f"{path}: no column {error}; wanted target, actual (and cycle), not {list(row)}"
                ) from None
            except (TypeError, ValueError):
                raise DataError(f"{path}, line {number}: {row} holds no two numbers target and actual") from None
        few = [target for target, errors in groups.items() if len(errors) < 2]
        if not groups or few:
            raise DataError(
                f"{path}: {len(groups)} targets, {len(few)} of them measured only once {few[:4]}; wanted at least one "
                "target and two rows for each" + ("" if cycle is None else f" in cycle {cycle}")
            )
        full = max(groups) if largest is None else largest
        if not full > 0:
            raise DataError(f"{path}: the full conductance is {full:g}; wanted a positive one (largest=)")
        targets = sorted(groups)
        means = [math.fsum(groups[target]) / len(groups[target]) for target in targets]
        stds = [
            math.sqrt(math.fsum((x - mean) ** 2 for x in groups[target]) / (len(groups[target]) - 1))
            for target, mean in zip(targets, means, strict=True)
        ]
        return cls(tuple(t / full for t in targets), tuple(m / full for m in means), tuple(s / full for s in stds))


@dataclass(frozen=True)
class Drift:
    """Conductances fall as g (t / t0)^-ν, ν ~ N(exponent, spread²) for each cell; the law of phase-change memory.

    seconds: t since programming.
    start: t0, when the programmed values were measured, in seconds.
    exponent: the mean ν; "pcm_aihwkit" has mean and spread depend on g, as in that kit's PCM model.
    spread: the standard deviation of ν among cells.
    compensated: the read-out divides each tensor by its mean fall (global drift compensation).
    """

    seconds: float
    start: float = 20.0
    exponent: float | str = 0.05
    spread: float = 0.0
    compensated: bool = False

    def __post_init__(self) -> None:
        if not (self.seconds >= self.start > 0 and self.spread >= 0):
            raise DataError(f"{self}: wanted seconds >= start > 0 and spread >= 0")
        if isinstance(self.exponent, str) and (self.exponent != "pcm_aihwkit" or self.spread):
            raise DataError(f"{self}: wanted a number as exponent, or 'pcm_aihwkit' with no spread of its own")

    @property
    def log_time(self) -> float:
        """log(t / t0)."""
        return math.log(self.seconds / self.start)

    @property
    def random(self) -> bool:
        """Whether cells differ in their exponents."""
        return isinstance(self.exponent, str) or self.spread > 0

    def exponents(self, g: Conductances) -> tuple[Conductances, Conductances]:
        """Mean and standard deviation of ν at conductances g."""
        if isinstance(self.exponent, str):
            log = g.clamp(1e-12, 1.0).log()
            return (-0.0155 * log + 0.0244).clamp(0.049, 0.1), (-0.0125 * log - 0.0059).clamp(0.008, 0.045)
        return torch.full_like(g, self.exponent), torch.full_like(g, self.spread)

    def moments(self, g: Conductances) -> tuple[Conductances, Conductances]:
        """E f and E f² of the factor f = (t / t0)^-ν, log-normal: exp(-μL + (sL)²/2) and exp(-2μL + 2(sL)²)."""
        mean, std = self.exponents(g)
        shift, width = mean * self.log_time, (std * self.log_time).square()
        return (width / 2 - shift).exp(), (2 * width - 2 * shift).exp()


def _interpolated(g: Conductances, x: tuple[float, ...], y: tuple[float, ...]) -> Conductances:
    points, values = g.new_tensor(x), g.new_tensor(y)
    if len(x) == 1:
        return values.expand_as(g)
    right = torch.searchsorted(points, g.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = ((g - points[left]) / (points[right] - points[left])).clamp(0, 1)
    return values[left].lerp(values[right], share)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file() or path.stat().st_size > LIMIT:
        raise DataError(f"{path}: no such file, or more than {LIMIT >> 20} MB of measurements")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            return list(csv.DictReader(file))
        except csv.Error as error:
            raise DataError(f"{path}: not a CSV file: {error}") from error

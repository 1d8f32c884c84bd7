"""Write-verify as what it is: pulse, read, stop within the tolerance or give up; simulated, with its closed forms."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightbank.cim.device import Device
from weightbank.cim.ledger import Effort, Ledger
from weightbank.errors import DataError

BLOCK = 2**14
"""Pulses that are drawn at once when few cells are left."""

POPULATION = 2**18
"""Cells that stand for all where there is no closed form."""


@dataclass(frozen=True)
class WriteVerify:
    """A loop that reads a cell and sends pulses until it reads within `tolerance` of the wanted level.

    Args:
        pulse: "redraw": a pulse writes the cell anew, with a fresh error. "incremental": a pulse takes back the
            fraction `gain` of the error that was read, times 1 + cycle_noise · N(0, 1).
        tolerance: in level steps.
        max_pulses: give up after so many, the first write included.
        read_noise: standard deviation of a verifying read, in level steps.
        gain: of an incremental pulse.
        cycle_noise: of an incremental pulse, from cycle to cycle.

    Raises `DataError` for numbers out of range.
    """

    pulse: Literal["redraw", "incremental"] = "redraw"
    tolerance: float = 0.06
    max_pulses: int = 10_000
    read_noise: float = 0.0
    gain: float = 0.1
    cycle_noise: float = 0.5

    def __post_init__(self) -> None:
        good = self.tolerance > 0 and self.max_pulses >= 1 and self.read_noise >= 0
        if not (good and self.pulse in ("redraw", "incremental") and 0 < self.gain < 2 and self.cycle_noise >= 0):
            raise DataError(
                f"{self}; wanted pulse='redraw' or 'incremental', tolerance > 0, max_pulses >= 1, read_noise >= 0, "
                "0 < gain < 2 and cycle_noise >= 0"
            )

    @classmethod
    def matching(cls, device: Device) -> "WriteVerify":
        """The redraw loop that leaves errors of standard deviation `verified_sigma` where there were `sigma`.

        So the model of two widths is this loop with its truncated normal errors taken for normal ones. Raises
        `DataError` unless both are numbers and 0 < verified_sigma < sigma.
        """
        sigma, verified = device.sigma, device.verified_sigma
        if not (isinstance(sigma, float | int) and isinstance(verified, float | int) and 0 < verified < sigma):
            raise DataError(
                f"no tolerance turns sigma={sigma} into verified_sigma={verified}; wanted numbers with "
                "0 < verified_sigma < sigma, or name a process: WriteVerify(tolerance=...)"
            )
        low, high = 0.0, 1.0
        while cls._kept(high) < (verified / sigma) ** 2:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if cls._kept(middle) < (verified / sigma) ** 2 else (low, middle)
        return cls(tolerance=high * sigma)

    def run(
        self,
        errors: Float[Tensor, "*cells"],
        sigma: float | Float[Tensor, "*cells"],
        *,
        generator: torch.Generator,
        limit: float | Float[Tensor, "*cells"] | None = None,
        tolerance: float | Float[Tensor, "*cells"] | None = None,
        bias: float | Float[Tensor, "*cells"] = 0.0,
        stuck: Bool[Tensor, "*cells"] | None = None,
    ) -> Ledger:
        """Verify cells that a first pulse has left with `errors`, all at once, pulse by pulse.

        sigma, bias: standard deviation and mean of the error of a redrawn cell.
        limit: a cell whose first read is within this is left alone; the tolerance if None. Infinite: it is not read.
        tolerance: where pulses stop; the process's own if None.
        stuck: cells that no pulse changes.

        All but `generator` in level steps. Cells are read once after the first write and once after each pulse.
        """
        shape = errors.shape
        error = errors.reshape(-1).clone()
        ones = torch.ones_like(error)
        tolerance_ = ones * (self.tolerance if tolerance is None else _flat(tolerance))
        limit_ = tolerance_ if limit is None else ones * _flat(limit)
        sigma_, bias_ = _flat(sigma), _flat(bias)
        pulses = torch.ones(len(error), dtype=torch.int32)
        reads = torch.zeros_like(pulses)
        active = (limit_ < math.inf).nonzero()[:, 0]
        reads[active] = 1
        value = self._read(error[active], generator)
        out = value.abs() > limit_[active]
        active, value = active[out], value[out]
        done = 1
        while len(active) and done < self.max_pulses:
            tries = self._tries(len(active), done)
            normal = torch.randn(tries, len(active), generator=generator, dtype=error.dtype)
            if self.pulse == "redraw":
                new = _at(bias_, active) + _at(sigma_, active) * normal
            else:
                new = error[active] - self.gain * value * (1 + self.cycle_noise * normal)
            if stuck is not None:
                new = torch.where(stuck.reshape(-1)[active], error[active], new)
            values = self._read(new, generator)
            good = values.abs() <= tolerance_[active]
            hit, first = good.max(0)
            used = torch.where(hit, first, tries - 1)[None]
            error[active] = new.gather(0, used)[0]
            pulses[active] += used[0].to(torch.int32) + 1
            reads[active] += used[0].to(torch.int32) + 1
            active, value = active[~hit], values[-1, ~hit]
            done += tries
        failed = torch.zeros(len(error), dtype=torch.bool)
        failed[active] = True
        return Ledger(error.view(shape), pulses.view(shape), reads.view(shape), failed.view(shape))

    def outcome(self, sigma: float, *, limit: float | None = None, tolerance: float | None = None) -> "Outcome":
        """What a cell with first error N(0, sigma²) is expected to take and to be left with; see `run` for the rest.

        The redraw model in closed form: a read v = e + read noise has variance τ² = sigma² + read_noise², a pulse is
        accepted with P = erf(tolerance / (τ√2)), so verifying takes 1/P pulses on average and leaves the variance of a
        truncated normal. The incremental model by simulating 262,144 cells.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        return _outcome(self, float(sigma), tolerance if limit is None else limit, tolerance)

    def _tries(self, cells: int, done: int) -> int:
        """How many pulses to simulate at once: redrawn ones do not depend on those before, so few cells take many."""
        if self.pulse == "incremental":
            return 1
        return max(1, min(BLOCK // cells, 64, self.max_pulses - done))

    def _read(self, error: Float[Tensor, "*K"], generator: torch.Generator) -> Float[Tensor, "*K"]:
        if not self.read_noise:
            return error
        return error + self.read_noise * torch.randn(error.shape, generator=generator, dtype=error.dtype)

    @staticmethod
    def _kept(a: float) -> float:
        """The variance of a standard normal truncated to [-a, a]."""
        inside = math.erf(a / math.sqrt(2))
        return 1 - 2 * a * _density(a) / inside if inside else 0.0


@dataclass(frozen=True)
class Outcome:
    """Expectations for one cell: pulses (the first included), reads, odds of failure, and the variance of its error."""

    pulses: float
    reads: float
    failures: float
    variance: float

    def effort(self, cells: float) -> Effort:
        """The expectation for so many cells."""
        return Effort(cells, cells * self.pulses, cells * self.reads, cells * self.failures)


@lru_cache(maxsize=4096)
def _outcome(process: WriteVerify, sigma: float, limit: float, tolerance: float) -> Outcome:
    if limit == math.inf:
        return Outcome(1.0, 0.0, 0.0, sigma**2)
    if process.pulse == "incremental":
        generator = torch.Generator().manual_seed(0)
        first = sigma * torch.randn(POPULATION, generator=generator, dtype=torch.float64)
        ledger = process.run(first, sigma, limit=limit, tolerance=tolerance, generator=generator)
        effort = ledger.effort * (1 / POPULATION)
        return Outcome(effort.pulses, effort.reads, effort.failures, float(ledger.errors.square().mean()))
    spread = math.hypot(sigma, process.read_noise)
    left, inside_left = _inside(sigma, process.read_noise, limit)
    odds, inside = _inside(sigma, process.read_noise, tolerance)
    redone, tries = 1 - left, process.max_pulses - 1
    if tries == 0 or spread == 0:
        return Outcome(1.0, 1.0, redone, sigma**2)
    lost = (1 - odds) ** tries
    pulses = redone * ((1 - lost) / odds if odds else tries)
    good = inside / odds if odds else 0.0
    bad = (sigma**2 - inside) / (1 - odds) if odds < 1 else 0.0
    variance = inside_left + redone * ((1 - lost) * good + lost * bad)
    return Outcome(1 + pulses, 1 + pulses, redone * lost, variance)


def _inside(sigma: float, read_noise: float, bound: float) -> tuple[float, float]:
    """P(|v| ≤ bound) and E[e²; |v| ≤ bound] for v = e + n: e given v is N(v sigma²/τ², sigma² read_noise²/τ²)."""
    spread = math.hypot(sigma, read_noise)
    if spread == 0:
        return 1.0, 0.0
    a = bound / spread
    odds = math.erf(a / math.sqrt(2))
    share = sigma**2 / spread**2
    return odds, share**2 * spread**2 * (odds - 2 * a * _density(a)) + share * read_noise**2 * odds


def _density(a: float) -> float:
    return math.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)


def _flat(x: float | Tensor) -> float | Tensor:
    return x.reshape(-1) if isinstance(x, Tensor) else x


def _at(x: float | Tensor, places: Tensor) -> float | Tensor:
    return x[places] if isinstance(x, Tensor) else x

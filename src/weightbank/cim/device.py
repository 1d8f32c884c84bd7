"""A noisy memory: weights of N bits over cells of m bits whose values come out wrong (arXiv 2202.08395, section 3)."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor

from weightbank.cim.statistics import FITS, Drift, Fit, Spread, Table
from weightbank.errors import DataError
from weightbank.layout import Layout
from weightbank.types import Flat

Analog: TypeAlias = Literal["matrices", "everything"] | Callable[[str, tuple[int, ...]], bool]
"""Which tensors are on the device: those of two or more dimensions, all, or a rule of name and shape."""


@dataclass(frozen=True)
class Device:
    """A memory whose cells hold m bits each; a weight of N bits takes M = ⌈N / m⌉ of them.

    Cell i (1 the most significant) stands for 2^(-i m) of the scale, the largest |w| of the weight's tensor (or output
    channel), so a weight errs by scale · Σ_i 2^(-i m) e_i, where e_i ~ N(0, sigma²) is the error of cell i in level
    steps (a cell of m bits has levels 0 to 2^m - 1). The sign of a weight is exact. Matrices and kernels are on the
    device; biases and normalisation parameters are digital and exact.

    Args:
        weight_bits: N, 1 to 24.
        cell_bits: m, at most N.
        sigma: standard deviation of a cell's error after one write. A number is in level steps. The name of a published
            fit ("pcm_aihwkit", "pcm_joshi", "rram_wan"), a `Table` of measurements, or a function of the conductance g
            in [0, 1] is in fractions of the cell's range.
        verified_sigma: the same after write-verify.
        scale: one scale per "tensor", or per "channel" (its first dimension).
        analog: which tensors are on the device: "matrices" (two or more dimensions), "everything", or a function
            (name, shape) -> bool.
        quantized: round |w| / scale to the nearest of the 2^N levels, the largest being 1 - 2^-N; otherwise the last
            cell holds the rest exactly.
        pairs: each digit is the difference of two cells, the second one empty; both err.
        stuck_low: probability of a cell that is stuck empty, whatever is written.
        stuck_high: probability of a cell that is stuck full.
        read_noise: standard deviation of a cell's value in level steps, new for each inference.
        drift: what time does to the conductances.

    Raises `DataError` for numbers out of range.
    """

    weight_bits: int = 8
    cell_bits: int = 1
    sigma: Spread = 0.1
    verified_sigma: Spread = 0.03
    scale: Literal["tensor", "channel"] = "tensor"
    analog: Analog = "matrices"
    quantized: bool = False
    pairs: bool = False
    stuck_low: float = 0.0
    stuck_high: float = 0.0
    read_noise: float = 0.0
    drift: Drift | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.cell_bits, int) and isinstance(self.weight_bits, int)
        if not whole or not 1 <= self.cell_bits <= self.weight_bits <= 24:
            raise DataError(
                f"weight_bits={self.weight_bits} over cells of cell_bits={self.cell_bits}; wanted whole numbers, "
                "1 <= cell_bits <= weight_bits <= 24"
            )
        for name in ("sigma", "verified_sigma"):
            _check_spread(name, getattr(self, name))
        if isinstance(self.sigma, float | int) and isinstance(self.verified_sigma, float | int):  # noqa: SIM102
            if self.verified_sigma > self.sigma:
                raise DataError(
                    f"verified_sigma={self.verified_sigma} is above sigma={self.sigma}: verifying would make it worse"
                )
        odds = (self.stuck_low, self.stuck_high)
        if not (min(odds) >= 0 and sum(odds) <= 1 and 0 <= self.read_noise < math.inf):
            raise DataError(
                f"stuck_low={self.stuck_low}, stuck_high={self.stuck_high}, read_noise={self.read_noise}; wanted "
                "probabilities that sum to at most 1 and a read noise of 0 or more"
            )
        if self.scale not in ("tensor", "channel"):
            raise DataError(f"scale={self.scale!r}; wanted 'tensor' or 'channel'")
        if not callable(self.analog) and self.analog not in ("matrices", "everything"):
            raise DataError(f"analog={self.analog!r}; wanted 'matrices', 'everything' or a function (name, shape)")

    @cached_property
    def cells(self) -> int:
        """M = ⌈N / m⌉, the digits of a weight."""
        return -(-self.weight_bits // self.cell_bits)

    @cached_property
    def places(self) -> tuple[float, ...]:
        """2^(-i m) for i = 1 .. M: what one level step of each cell is worth, in units of the scale."""
        return tuple(2.0 ** (-i * self.cell_bits) for i in range(1, self.cells + 1))

    @property
    def top(self) -> int:
        """2^m - 1, the highest level of a cell."""
        return int(2**self.cell_bits) - 1

    @property
    def sides(self) -> int:
        """Cells per digit: 2 for differential pairs."""
        return 2 if self.pairs else 1

    @property
    def uniform(self) -> bool:
        """Whether a cell's error does not depend on its level."""
        return isinstance(self.sigma, float | int) and isinstance(self.verified_sigma, float | int)

    @property
    def gaussian(self) -> bool:
        """Whether a programmed weight is normal: no stuck cells, and all cells drift alike."""
        return self.stuck_low + self.stuck_high == 0 and (self.drift is None or not self.drift.random)

    @property
    def needs_levels(self) -> bool:
        """Whether anything depends on what the cells hold."""
        plain = self.uniform and not self.quantized and self.stuck_low + self.stuck_high == 0 and self.drift is None
        return not plain

    def spread(self, level: Flat | None, *, verified: bool = False) -> tuple[float | Flat, float | Flat]:
        """Mean and standard deviation, in level steps, of the error of cells that should hold `level`, shape (P,)."""
        spread = self.verified_sigma if verified else self.sigma
        if isinstance(spread, float | int):
            return 0.0, float(spread)
        if isinstance(spread, str):
            spread = FITS[spread]
        assert level is not None
        g = (level / self.top).clamp(0, 1)
        bias: float | Flat = spread.bias(g) * self.top if isinstance(spread, Table) else 0.0
        return bias, spread(g) * self.top

    def on_device(self, layout: Layout) -> Bool[Tensor, " P"]:
        """Which weights are on the device, shape (P,)."""
        mask = torch.zeros(layout.size, dtype=torch.bool)
        for entry in layout.entries:
            if callable(self.analog):
                chosen = self.analog(entry.name, entry.shape)
            else:
                chosen = self.analog == "everything" or len(entry.shape) >= 2
            mask[entry.offset : entry.offset + entry.size] = bool(chosen)
        return mask

    def scales(self, theta: Flat, layout: Layout) -> Flat:
        """The scale of each weight's tensor or channel, shape (P,); zero for digital weights."""
        layout.check(theta)
        mask, scales = self.on_device(layout), torch.zeros_like(theta)
        for entry in layout.entries:
            place = slice(entry.offset, entry.offset + entry.size)
            if entry.size and bool(mask[entry.offset]):
                channels = entry.shape[0] if self.scale == "channel" and len(entry.shape) >= 2 else 1
                rows = theta[place].view(channels, -1)
                scales[place].view(channels, -1)[:] = rows.abs().amax(1, keepdim=True)
        return scales

    def describe(self) -> dict[str, Any]:
        """Plain values for JSON; `DataError` if a field is a function of the caller's, which cannot be stored."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (Fit, Table, Drift)):
                value = {"kind": type(value).__name__.lower(), **asdict(value)}
            elif callable(value):
                raise DataError(
                    f"{field.name} is a function, which cannot be stored; use a number, a published fit "
                    f"({', '.join(FITS)}) or a Table, and analog='matrices' or 'everything'"
                )
            plain[field.name] = value
        return plain

    @classmethod
    def parse(cls, described: Any) -> "Device":
        """The inverse of `describe`; `DataError` for anything else."""
        names = {field.name for field in fields(cls)}
        if not isinstance(described, dict) or not set(described) <= names:
            raise DataError(f"a stored device must have the fields {', '.join(sorted(names))}")
        try:
            return cls(**{name: _parsed(value) for name, value in described.items()})
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"a stored device cannot be read: {error}") from error


def _parsed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    rest = {name: tuple(part) if isinstance(part, list) else part for name, part in value.items() if name != "kind"}
    return {"fit": Fit, "table": Table, "drift": Drift}[value["kind"]](**rest)


def _check_spread(name: str, spread: Any) -> None:
    if isinstance(spread, str):
        if spread not in FITS:
            raise DataError(f"{name}={spread!r}; published fits are {', '.join(FITS)}")
    elif isinstance(spread, float | int) and not isinstance(spread, bool):
        if not 0 <= spread < math.inf:
            raise DataError(f"{name}={spread}; wanted a standard deviation of 0 or more, in level steps")
    elif not callable(spread):
        raise DataError(f"{name} is a {type(spread).__name__}; wanted a number, a name, a Table or a function")

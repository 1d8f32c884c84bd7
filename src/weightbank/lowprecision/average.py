"""Averages of low-precision iterates in less memory than float32, or exact (after SWALP, arXiv 1904.11943)."""

from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from weightbank.distributions.packed import PackedWeights
from weightbank.errors import LayoutError, PrecisionError
from weightbank.formats import Format, Packed, format_of
from weightbank.formats.rounding import key
from weightbank.layout import Layout
from weightbank.types import Flat


class RoundedAverage:
    """A running average that is itself kept in a number format, stochastically rounded after each update.

    wbar <- Q(wbar + (w - wbar) / (m + 1)): unbiased, where nearest rounding would stall. Memory: the packed codes (and
    one parameter tensor in float32 while updating). Six bits more than the iterates' are practically lossless; their
    own format still removes most of their noise.

    layout: which weight stands where. format: of the average. seed: of its rounding.
    """

    def __init__(self, layout: Layout, format: Format | str, *, seed: int = 0) -> None:
        self.layout, self.format, self.seed = layout, format_of(format), seed
        self.count = 0
        self._parts: dict[str, Packed] = {}

    def update(self, theta: Flat, *, step: int | None = None) -> None:
        """Take one iterate, shape (P,), of any float dtype."""
        self.layout.check(theta)
        for entry in self.layout.entries:
            new = theta[entry.offset : entry.offset + entry.size].view(entry.shape).detach().to("cpu", torch.float32)
            value = new if self.count == 0 else self._parts[entry.name].unpack().lerp_(new, 1 / (self.count + 1))
            own = key(self.seed, f"average of '{entry.name}'", self.count)
            self._parts[entry.name] = self.format.pack(value, rounding="stochastic", key=own)
        self.count += 1

    def packed(self) -> PackedWeights:
        """The average as it is stored; `PrecisionError` before the first update."""
        if self.count == 0:
            raise PrecisionError("no iterate came yet, so there is no average")
        return PackedWeights(self.layout, dict(self._parts))

    def mean(self) -> Flat:
        """The average, shape (P,), float32."""
        return self.packed().unpack()

    @property
    def nbytes(self) -> int:
        """Bytes of the average."""
        return sum(part.nbytes for part in self._parts.values())

    def state_dict(self) -> dict[str, Any]:
        """Codes and scales for a checkpoint."""
        parts = {name: [part.codes, part.scales] for name, part in self._parts.items()}
        return {"count": self.count, "format": repr(self.format), "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; `LayoutError` for the state of another average."""
        shapes = {entry.name: entry.shape for entry in self.layout.entries}
        if state["format"] != repr(self.format) or not set(state["parts"]) <= set(shapes):
            raise LayoutError(f"this is the state of an average in {state['format']}, or of another model")
        self.count = int(state["count"])
        self._parts = {
            name: Packed(self.format, shapes[name], codes, scales) for name, (codes, scales) in state["parts"].items()
        }


class ExactAverage:
    """The exact sum of low-precision iterates, as whole numbers of their smallest step; the order does not matter.

    Each row of a parameter (index of its first dimension; a vector is one row) has a unit, the largest power of two
    of which all its weights so far are whole multiples, and every tensor takes 2, 4 or 8 bytes a weight, as few as
    its sums need: 2 for up to 256 iterates in 8-bit blocks while their exponents stay.

    Iterates must be coarse, as those of low-precision training are: sums of arbitrary float32 numbers soon need more
    than 53 bits, which is a `PrecisionError`.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.count = 0
        self._sums: dict[str, Int[Tensor, "R C"]] = {}
        self._units: dict[str, Int64[Tensor, " R"]] = {}

    def update(self, theta: Flat, *, step: int | None = None) -> None:
        """Take one iterate, shape (P,), float32 or narrower."""
        self.layout.check(theta)
        if theta.dtype == torch.float64:
            raise PrecisionError("float64 iterates cannot be summed exactly; train in float32 or narrower")
        changed: dict[str, tuple[Int[Tensor, "R C"], Int64[Tensor, " R"]]] = {}
        for entry in self.layout.entries:
            rows = entry.shape[0] if len(entry.shape) > 1 else 1
            x = theta[entry.offset : entry.offset + entry.size].detach().to("cpu", torch.float32)
            if entry.size:
                changed[entry.name] = self._added(entry.name, x.reshape(rows, entry.size // rows))
        for name, (total, unit) in changed.items():
            self._sums[name], self._units[name] = total, unit
        self.count += 1

    def mean(self) -> Flat:
        """The sum divided by the count, shape (P,), float32: rounded once."""
        if self.count == 0:
            raise PrecisionError("no iterate came yet, so there is no average")
        out = torch.zeros(self.layout.size)
        for name, total in self._sums.items():
            value = torch.ldexp(total.to(torch.float64), self._units[name][:, None]) / self.count
            out[self.layout.slice(name)] = value.reshape(-1).to(torch.float32)
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of sums and units."""
        return sum(total.nbytes for total in self._sums.values()) + sum(unit.nbytes for unit in self._units.values())

    def state_dict(self) -> dict[str, Any]:
        """Sums and units for a checkpoint."""
        return {"count": self.count, "sums": dict(self._sums), "units": dict(self._units)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; `LayoutError` for the state of another model."""
        sizes = {entry.name: entry.size for entry in self.layout.entries}
        if any(sizes.get(name) != total.numel() for name, total in state["sums"].items()):
            raise LayoutError("this is the state of an average over other weights")
        self.count, self._sums, self._units = int(state["count"]), dict(state["sums"]), dict(state["units"])

    def _added(self, name: str, x: Float[Tensor, "R C"]) -> tuple[Int[Tensor, "R C"], Int64[Tensor, " R"]]:
        unit = _unit(x)
        total = torch.zeros_like(x, dtype=torch.int64)
        if name in self._sums:
            unit = torch.minimum(unit, self._units[name])
            old = self._sums[name].to(torch.float64)
            total = _whole(name, torch.ldexp(old, (self._units[name] - unit)[:, None]))
        total += _whole(name, torch.ldexp(x.to(torch.float64), -unit[:, None]))
        largest = int(total.abs().max())
        for dtype in (torch.int16, torch.int32):
            if largest <= torch.iinfo(dtype).max:
                return total.to(dtype), unit
        return total, unit


_ZERO = 128
"""The unit of a row of zeros: any weight makes it smaller."""


def _unit(x: Float[Tensor, "R C"]) -> Int64[Tensor, " R"]:
    """The power of the lowest set bit of each row, read from the bits of the floats."""
    bits = x.contiguous().view(torch.int32) & (2**31 - 1)
    if bool((bits >= 255 << 23).any()):
        raise PrecisionError("an iterate has NaN or infinite weights")
    exponent = (bits >> 23).clamp(min=1)
    mantissa = (bits & (2**23 - 1)) | ((bits >> 23 > 0).to(torch.int32) << 23)
    lowest = ((mantissa & -mantissa).to(torch.float32).view(torch.int32) >> 23) - 127
    power = torch.where(mantissa == 0, _ZERO, exponent - 150 + lowest)
    return power.amin(1).to(torch.int64)


def _whole(name: str, value: Float[Tensor, "R C"]) -> Int64[Tensor, "R C"]:
    largest = float(value.abs().max())
    if largest >= 2.0**52:
        raise PrecisionError(
            f"the weights of '{name}' have no common step: sums would need more than 53 bits; "
            "use Moments(layout, variance=False) for iterates in full precision"
        )
    return value.to(torch.int64)

"""Fixed point: whole multiples of one step (SWALP, Yang et al., ICML 2019, arXiv 1904.11943, eq. 1)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from weightbank.errors import FormatError
from weightbank.formats.blocks import whole
from weightbank.formats.coded import Codec, Coded
from weightbank.formats.grids import Whole


@dataclass(frozen=True, repr=False)
class FixedPoint(Coded):
    """Codes of `bits` bits (2..16) times a step of 2^-fraction: from -2^(bits-fraction-1) to one step below its mirror.

    Values beyond saturate. `codes="symmetric"` leaves the lowest code out. Stochastic rounding is unbiased between
    these ends, E[Q(x)] = x.
    """

    bits: int
    fraction: int
    codes: Literal["full", "symmetric"] = "full"

    def __post_init__(self) -> None:
        """Raise FormatError for numbers out of range."""
        whole("bits", self.bits, 2, 16)
        whole("fraction", self.fraction, self.bits - 128, 126)  # the lowest code and the step are normal float32
        if self.codes not in ("full", "symmetric"):
            raise FormatError(f'codes is {self.codes!r}; use "full" or "symmetric"')

    def __repr__(self) -> str:
        codes = "" if self.codes == "full" else f", codes={self.codes!r}"
        return f"FixedPoint({self.bits}, {self.fraction}{codes})"

    @cached_property
    def codec(self) -> Codec:
        """One grid for all weights, no scales."""
        return Codec(Whole(self.bits, self.fraction, self.codes == "symmetric"))

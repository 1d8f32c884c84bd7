"""Block floating point: the weights of a block share one exponent (SWALP, Yang et al., ICML 2019, arXiv 1904.11943)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from weightbank.errors import FormatError
from weightbank.formats.blocks import Block, check_block, whole
from weightbank.formats.coded import Codec, Coded
from weightbank.formats.grids import Scale, Whole


@dataclass(frozen=True, repr=False)
class BlockFloatingPoint(Coded):
    """Whole codes of `bits` bits (2..16) times a step of 2^(E - (bits - 2)), E shared by a block.

    `block` says which weights share E: so many along the last axis (a ragged tail is a smaller block), None for the
    whole tensor, or one of `Per(0)`, `Tile(axis, size)`, `ByDimensions()`.
    E = floor(log2 max|x|), clipped to a signed number of `exponent_bits` bits (1..8), beyond which codes saturate.
    `codes`: "full" is -2^(bits-1) .. 2^(bits-1)-1, where a block whose maximum is a negative power of two, -2^k, takes
    E = k - 1 (see `grids.Scale`: this makes quantizing idempotent); "symmetric" leaves the lowest code out, as
    OCP MXINT8 does. The error of a weight is at most half a step, or below one step where it saturates at the top.
    A block of zeros stays zero, subnormals are exact, and results are always finite.
    """

    bits: int
    block: Block = None
    exponent_bits: int = 8
    codes: Literal["full", "symmetric"] = "full"

    def __post_init__(self) -> None:
        """Raise FormatError for numbers out of range."""
        whole("bits", self.bits, 2, 16)
        whole("exponent_bits", self.exponent_bits, 1, 8)
        object.__setattr__(self, "block", check_block(self.block))
        if self.codes not in ("full", "symmetric"):
            raise FormatError(f'codes is {self.codes!r}; use "full" or "symmetric"')

    def __repr__(self) -> str:
        block = "" if self.block is None else f", block={self.block!r}"
        exponent = "" if self.exponent_bits == 8 else f", exponent_bits={self.exponent_bits}"
        codes = "" if self.codes == "full" else f", codes={self.codes!r}"
        return f"BlockFloatingPoint({self.bits}{block}{exponent}{codes})"

    @cached_property
    def codec(self) -> Codec:
        """Whole codes with signed exponents."""
        symmetric, half = self.codes == "symmetric", 1 << (self.exponent_bits - 1)
        scale = Scale(-half, half - 1, half_open=not symmetric)
        return Codec(Whole(self.bits, self.bits - 2, symmetric), scale, self.block)

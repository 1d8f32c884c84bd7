"""Block floating point in plain torch, on any device: exponents, codes and values, and their bytes in a row.

The arithmetic of SWALP (Yang et al., ICML 2019, arXiv 1904.11943, section 3): a block shares E = floor(log2 max|x|)
and a step of 2^(E - (bits - 2)). Exponents are read from the bits of the floats, and every scaling by a power of two
is done in two steps, so that neither 2^134 nor 2^-142 need ever be a float32: subnormals come out exact.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from weightbank.formats.finite import refuse_nonfinite

MAGNITUDE = 2**31 - 1
LEAST_NORMAL = 2**23


class Grid(NamedTuple):
    """The numbers which define the arithmetic inside one block."""

    bits: int
    exponent_bits: int
    symmetric: bool

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def least_exponent(self) -> int:
        """Where smaller exponents are clipped to."""
        return -(1 << (self.exponent_bits - 1))

    @property
    def greatest_exponent(self) -> int:
        """Where larger exponents are clipped to."""
        return (1 << (self.exponent_bits - 1)) - 1


def exponents(grid: Grid, blocks: Float[Tensor, "N B"]) -> Int8[Tensor, " N"]:
    """The shared exponent of each block: floor(log2 max|x|), clipped; the least for a block of zeros.

    With full codes it is the least E whose half-open range [-2^(E+1), 2^(E+1)) holds the block: a negative power of
    two, -2^k, counts as k - 1, because code -2^(bits-1) reaches it. Without this, a block which rounds onto that code
    would get a larger exponent, a coarser grid, and other values when it is quantized again.
    """
    bits = blocks.view(torch.int32)
    magnitude = bits & MAGNITUDE
    if not grid.symmetric:
        magnitude += bits >> 31  # one less where negative: the exponent falls where the mantissa is zero
    top = magnitude.amax(1).clamp_(min=0)
    normal = (top >> 23) - 127
    subnormal = (top >> 22) - 128  # -127 for [2^-127, 2^-126), and -128 stands for all below
    exponent = torch.where(top >= LEAST_NORMAL, normal, subnormal)
    return exponent.clamp_(grid.least_exponent, grid.greatest_exponent).to(torch.int8)


def codes(
    grid: Grid, blocks: Float[Tensor, "N B"], exponent: Int8[Tensor, " N"], top_exponent: int = 127
) -> Float[Tensor, "N B"]:
    """The codes x / step, rounded half to even and clipped to the codes, as float32 without a negative zero.

    Code -2^(bits-1) is not used in blocks of exponent `top_exponent`, where it would mean an infinity.
    """
    whole = exponent.to(torch.int32)[:, None]
    scaled = _times_power(blocks, grid.bits - 2 - whole).round_()
    lowest = torch.where(whole >= top_exponent, -grid.highest, -grid.highest - (not grid.symmetric))
    return scaled.clamp_(max=grid.highest).clamp_(min=lowest.to(torch.float32)).add_(0.0)


def values(grid: Grid, code: Float[Tensor, "N B"], exponent: Int8[Tensor, " N"]) -> Float[Tensor, "N B"]:
    """The values code * step: exact in float32."""
    return _times_power(code, exponent.to(torch.int32)[:, None] - (grid.bits - 2))


def pack_codes(code: Float[Tensor, "N B"], bits: int) -> UInt8[Tensor, "N code_bytes"]:
    """Codes of 8 or 4 bits as bytes, two's complement; B must be even for 4 bits: lower index in the low nibble."""
    byte = code.to(torch.int8).view(torch.uint8)
    return byte if bits == 8 else (byte[:, 0::2] & 15) | (byte[:, 1::2] << 4)


def unpack_codes(packed: UInt8[Tensor, "N code_bytes"], bits: int) -> Float[Tensor, "N B"]:
    """The inverse of `pack_codes`."""
    if bits == 4:
        nibbles = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)
        return ((nibbles ^ 8).to(torch.int8) - 8).to(torch.float32)
    return packed.view(torch.int8).to(torch.float32)


def encode_row(grid: Grid, block: int, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
    """Write tiles of codes followed by one exponent byte; the last tile is padded with zero codes."""
    refuse_nonfinite(x)
    if x.numel() == 0:
        return
    tiles = torch.nn.functional.pad(x, (0, -x.numel() % block)).view(-1, block)
    exponent = exponents(grid, tiles)
    packed = out.view(len(tiles), -1)
    packed[:, :-1] = pack_codes(codes(grid, tiles, exponent), grid.bits)
    packed[:, -1] = exponent.view(torch.uint8)


def decode_rows(grid: Grid, block: int, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
    """Read R rows of tiles."""
    if out.numel() == 0:
        return
    tiles = raw.reshape(-1, block * grid.bits // 8 + 1)
    code = unpack_codes(tiles[:, :-1].contiguous(), grid.bits)
    rows = values(grid, code, tiles[:, -1].contiguous().view(torch.int8)).view(len(raw), -1)
    out.copy_(rows[:, : out.shape[1]])


def _times_power(x: Float[Tensor, "N B"], power: Tensor) -> Float[Tensor, "N B"]:
    """The product x * 2^power for |power| <= 252, rounding only where the result is subnormal."""
    half = power >> 1
    return x * _power(half) * _power(power - half)


def _power(exponent: Tensor) -> Tensor:
    """2^exponent, made from its bits, for exponents -126..127."""
    return ((exponent + 127) << 23).view(torch.float32)

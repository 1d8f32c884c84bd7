"""The numbers one code can mean, in plain torch on any device: whole numbers of steps, or small floats.

Blocks share a power of two 2^E (SWALP, Yang et al., ICML 2019, arXiv 1904.11943, section 3; OCP Microscaling Formats
MX v1.0). Exponents are read from the bits of the floats, and every scaling by a power of two is done in two steps, so
that neither 2^134 nor 2^-142 need ever be a float32: subnormals come out exact.
"""

import math
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor

from weightbank.formats.rounding import resolution, rounded

MAGNITUDE = 2**31 - 1
LEAST_NORMAL = 2**23
PRECISION = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 24}

Random: TypeAlias = Int32[Tensor, "N B"] | None
"""The bits of `rounding.bits`, or None to round to nearest."""


class Whole(NamedTuple):
    """Values code * 2^(E - fraction), two's complement; `symmetric` leaves the lowest code out."""

    bits: int
    fraction: int
    symmetric: bool

    def bounds(self, exponent: int, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
        """The lowest and highest code whose value at this exponent is finite and exact in `dtype`."""
        half = 1 << (self.bits - 1)
        coarse = max(self.bits - 1 - PRECISION[dtype], 0)
        fits = int(math.ldexp(torch.finfo(_within(dtype)).max, self.fraction - exponent))
        highest = min((half - 1) >> coarse << coarse, fits)
        return -min(highest if self.symmetric else half, fits), highest

    @property
    def signed(self) -> bool:
        """Whether codes are two's complement."""
        return True

    @property
    def digits(self) -> int:
        """Binary digits after the point which decide a stochastic rounding."""
        return resolution((1 << (self.bits - 1)) - 1)

    def codes(
        self, x: Float[Tensor, "N B"], exponent: Int8[Tensor, " N"], random: Random, dtype: torch.dtype
    ) -> Int32[Tensor, "N B"]:
        """The codes x / 2^(E - fraction), rounded and kept within their bounds."""
        scaled = times_power(x, self.fraction - exponent.to(torch.int32)[:, None])
        limits = _bounds(self, dtype).to(x.device)[exponent.to(torch.int64) + 128]
        scaled = scaled.clamp_(max=limits[:, 1:]).clamp_(min=limits[:, :1])
        return rounded(scaled, random, self.digits)

    def numbers(self, code: Int32[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What codes mean at exponent 0: exact in float32."""
        return code.to(torch.float32).mul_(2.0**-self.fraction)


class Small(NamedTuple):
    """Floats with a sign, `bits - 1 - mantissa` bits of exponent and `mantissa` bits, times 2^E.

    Magnitudes are ordered as their codes are; `largest` is the code of the largest number, the codes above it mean
    NaN, or infinity for the one next to it under the "ieee" rule. No code is made for them, nor for minus zero.
    """

    bits: int
    mantissa: int
    bias: int
    specials: Literal["ieee", "nan", "none"]

    @property
    def largest(self) -> int:
        """The code of the largest number."""
        top = (1 << (self.bits - 1)) - 1
        return {"none": top, "nan": top - 1, "ieee": top - (1 << self.mantissa)}[self.specials]

    @property
    def top(self) -> int:
        """The exponent of the largest number."""
        return max(self.largest >> self.mantissa, 1) - self.bias

    @property
    def signed(self) -> bool:
        """Codes have a bit for the sign instead of two's complement."""
        return False

    @property
    def digits(self) -> int:
        """Binary digits after the point which decide a stochastic rounding."""
        return resolution(1 << (self.mantissa + 1))

    def codes(
        self, x: Float[Tensor, "N B"], exponent: Int8[Tensor, " N"], random: Random, dtype: torch.dtype
    ) -> Int32[Tensor, "N B"]:
        """The codes of x / 2^E, rounded to the mantissa, saturating at the largest number that `dtype` has, too."""
        scaled = times_power(x, -exponent.to(torch.int32)[:, None])
        power = ((scaled.view(torch.int32) & MAGNITUDE) >> 23).sub_(127).clamp_(min=1 - self.bias)
        whole = rounded(times_power(scaled, self.mantissa - power), random, self.digits)
        magnitude = (power + (self.bias - 1) << self.mantissa) + whole.abs()
        return magnitude.clamp_(max=largest_within(self, dtype)) + ((whole < 0).to(torch.int32) << (self.bits - 1))

    def numbers(self, code: Int32[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What codes mean at exponent 0: exact in float32."""
        return meanings(self).to(code.device).index_select(0, code.reshape(-1)).view(code.shape)


Grid: TypeAlias = Whole | Small


class Scale(NamedTuple):
    """How a block finds its exponent: floor(log2 max|x|) - top, clipped to a range (one number only: a constant).

    `half_open`: -2^k counts as k - 1, because the lowest of full codes reaches it. Without this, a block which rounds
    onto that code would get a larger exponent, a coarser grid, and other values when it is quantized again. Stored as
    a byte: the exponent plus `bias`.
    """

    least: int
    greatest: int
    top: int = 0
    half_open: bool = False
    bias: int = 0

    def exponents(self, blocks: Float[Tensor, "N B"]) -> Int8[Tensor, " N"]:
        """The shared exponent of each block; the least for a block of zeros."""
        if self.constant:
            return torch.full((len(blocks),), self.least, dtype=torch.int8, device=blocks.device)
        bits = blocks.view(torch.int32)
        magnitude = bits & MAGNITUDE
        if self.half_open:
            magnitude += bits >> 31  # one less where negative: the exponent falls where the mantissa is zero
        top = magnitude.amax(1).clamp_(min=0)
        normal = (top >> 23) - 127
        subnormal = (top >> 22) - 128  # -127 for [2^-127, 2^-126), and -128 stands for all below
        exponent = torch.where(top >= LEAST_NORMAL, normal, subnormal) - self.top
        return exponent.clamp_(self.least, self.greatest).to(torch.int8)

    @property
    def constant(self) -> bool:
        """Whether no scale need be stored."""
        return self.least == self.greatest

    @property
    def stored(self) -> torch.dtype:
        """The dtype of a stored scale: a signed exponent, or an OCP E8M0 byte."""
        return torch.uint8 if self.bias else torch.int8

    def to_bytes(self, exponent: Int8[Tensor, " N"]) -> Int8[Tensor, " M"] | UInt8[Tensor, " M"]:
        """Exponents as they are stored; none where they are constant."""
        if self.constant:
            return exponent[:0]
        return (exponent.to(torch.int16) + self.bias).to(self.stored)

    def powers(self, stored: Int8[Tensor, " N"] | UInt8[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The factors 2^E of stored exponents; NaN for the E8M0 byte 255, which is never made."""
        return _powers().to(stored.device)[stored.to(torch.int64) + (1 if self.bias else 128)]

    def power_table(self, fraction: int = 0) -> Float[Tensor, "bytes"]:
        """The factor 2^(E - fraction) for each of the 256 bytes of a scale."""
        return _power_table(self, fraction)


UNSCALED = Scale(0, 0)


@cache
def meanings(grid: Small) -> Float[Tensor, " codes"]:
    """The number each of the 2^bits codes means, infinities and NaN included."""
    code = torch.arange(1 << grid.bits, dtype=torch.int32)
    magnitude = code & ((1 << (grid.bits - 1)) - 1)
    field = magnitude >> grid.mantissa
    whole = (magnitude & ((1 << grid.mantissa) - 1)) + ((field > 0).to(torch.int32) << grid.mantissa)
    power = field.clamp(min=1) - (grid.bias + grid.mantissa)
    finite = magnitude <= grid.largest
    number = times_power(whole.to(torch.float32), torch.where(finite, power, 0))
    number = torch.where(finite, number, torch.nan)
    if grid.specials == "ieee":
        number[magnitude == grid.largest + 1] = torch.inf
    return torch.where(code >> (grid.bits - 1) > 0, -number, number)


@cache
def largest_within(grid: Small, dtype: torch.dtype) -> int:
    """The largest code of `grid` whose number is finite and exact in `dtype`."""
    numbers = meanings(grid)[: grid.largest + 1]
    fits = (numbers.to(dtype).to(torch.float32) == numbers) & (numbers <= torch.finfo(_within(dtype)).max)
    return int(fits.nonzero().amax())


def times_power(x: Float[Tensor, "*shape"], power: Int32[Tensor, "*any"]) -> Float[Tensor, "*shape"]:
    """The product x * 2^power for |power| <= 252, rounding only where the result is subnormal; a fresh tensor."""
    half = power >> 1
    return x * _power(half) * _power(power - half)


def _power(exponent: Int32[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """2^exponent, made from its bits, for exponents -126..127."""
    return ((exponent + 127) << 23).view(torch.float32)


@cache
def _bounds(grid: Whole, dtype: torch.dtype) -> Float[Tensor, "exponents 2"]:
    return torch.tensor([grid.bounds(exponent, dtype) for exponent in range(-128, 128)], dtype=torch.float32)


@cache
def _powers() -> Float[Tensor, "257"]:
    return torch.tensor([*(math.ldexp(1, exponent) for exponent in range(-128, 128)), math.nan])


@cache
def _power_table(scale: Scale, fraction: int) -> Float[Tensor, "256"]:
    return scale.powers(torch.arange(256, dtype=torch.uint8).view(scale.stored)) * 2.0**-fraction


def _within(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype

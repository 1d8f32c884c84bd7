"""Small floats, each weight alone: IEEE-like types of any width, and the OCP FP8, FP6 and FP4 (OFP8 v1.0, MX v1.0)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from weightbank.errors import FormatError
from weightbank.formats.blocks import whole
from weightbank.formats.coded import Codec, Coded
from weightbank.formats.grids import Small, meanings

Specials = Literal["ieee", "nan", "none"]


@dataclass(frozen=True, repr=False)
class MiniFloat(Coded):
    """A sign, `exponent` bits (1..8) and `mantissa` bits (1..10), at most 16 in all, subnormals included.

    `bias` is 2^(exponent-1) - 1 unless given. `specials` says which codes are not numbers: "ieee" the whole largest
    exponent (infinity and NaN: FP8 E5M2, float16, bfloat16), "nan" only the two codes of all ones (FP8 E4M3), "none"
    no code (FP6, FP4). Values beyond the largest number saturate, under every rounding; minus zero becomes zero. No
    code of a special is ever made; one in foreign bytes unpacks to the infinity or NaN it means.
    """

    exponent: int
    mantissa: int
    bias: int | None = None
    specials: Specials = "ieee"

    def __post_init__(self) -> None:
        """Raise FormatError for numbers out of range and for types float32 cannot hold."""
        whole("exponent", self.exponent, 1, 8)
        whole("mantissa", self.mantissa, 1, min(10, 15 - self.exponent))
        if self.specials not in get_args(Specials):
            raise FormatError(f"specials is {self.specials!r}; use one of {', '.join(map(repr, get_args(Specials)))}")
        usual = (1 << (self.exponent - 1)) - 1
        if self.bias is not None:
            whole("bias", self.bias, -127, 127)
        grid = self.codec.grid
        assert isinstance(grid, Small)
        if grid.largest < 1 or grid.top > 127:
            raise FormatError(
                f"MiniFloat({self.exponent}, {self.mantissa}) with a bias of {grid.bias} and specials "
                f"{self.specials!r} has numbers up to 2^{grid.top + 1}; use a larger bias or more bits"
            )
        if self.bias == usual:
            object.__setattr__(self, "bias", None)

    def __repr__(self) -> str:
        bias = "" if self.bias is None else f", bias={self.bias}"
        specials = "" if self.specials == "ieee" else f", specials={self.specials!r}"
        return f"MiniFloat({self.exponent}, {self.mantissa}{bias}{specials})"

    @property
    def largest(self) -> float:
        """The largest number: 448 for FP8 E4M3, 57344 for FP8 E5M2, 6 for FP4 E2M1."""
        grid = self.codec.grid
        assert isinstance(grid, Small)
        return float(meanings(grid)[grid.largest])

    @cached_property
    def codec(self) -> Codec:
        """One grid for all weights, no scales."""
        bias = (1 << (self.exponent - 1)) - 1 if self.bias is None else self.bias
        return Codec(Small(1 + self.exponent + self.mantissa, self.mantissa, bias, self.specials))

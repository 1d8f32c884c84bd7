"""OCP Microscaling: small elements in blocks of 32 which share a power of two (OCP MX v1.0, 2023)."""

from dataclasses import dataclass
from functools import cached_property

from weightbank.errors import FormatError
from weightbank.formats.blocks import Tile, check_block, whole
from weightbank.formats.coded import Codec, Coded
from weightbank.formats.grids import Grid, Scale, Small, Whole

ELEMENTS: dict[str, Grid] = {
    "mxint8": Whole(8, 6, True),
    "mxfp8_e4m3": Small(8, 3, 7, "nan"),
    "mxfp8_e5m2": Small(8, 2, 15, "ieee"),
    "mxfp6_e3m2": Small(6, 2, 3, "none"),
    "mxfp6_e2m3": Small(6, 3, 1, "none"),
    "mxfp4_e2m1": Small(4, 1, 1, "none"),
}


@dataclass(frozen=True, repr=False)
class Microscaling(Coded):
    """An MX format by its name, for example "mxfp4_e2m1": blocks of `block` (32 in the standard) along `axis`.

    The scale is 2^(floor(log2 max|x|) - emax), clipped to 2^-127 .. 2^127, with emax the exponent of the largest
    element, as the standard has it (section 6.3); elements beyond the largest saturate. Scales are stored as E8M0
    bytes; a block of zeros takes the least. "mxint8" leaves the code -128 out.
    """

    name: str
    axis: int = -1
    block: int = 32

    def __post_init__(self) -> None:
        """Raise FormatError for unknown names and numbers out of range."""
        if self.name not in ELEMENTS:
            raise FormatError(f"{self.name!r} is no microscaling format; use one of {', '.join(ELEMENTS)}")
        whole("axis", self.axis, -64, 63)
        whole("block", self.block, 1, 2**31)

    def __repr__(self) -> str:
        axis = "" if self.axis == -1 else f", axis={self.axis}"
        block = "" if self.block == 32 else f", block={self.block}"
        return f"Microscaling({self.name!r}{axis}{block})"

    @cached_property
    def codec(self) -> Codec:
        """The element's grid, with E8M0 scales."""
        grid = ELEMENTS[self.name]
        top = grid.top if isinstance(grid, Small) else 0
        return Codec(grid, Scale(-127, 127, top, bias=127), check_block(Tile(self.axis, self.block)))

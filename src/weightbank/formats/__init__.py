"""On which grid the weights stand: number formats as values, with their true bits and their bytes in a row."""

from weightbank.formats.block_floating_point import BlockFloatingPoint
from weightbank.formats.blocks import ByDimensions, Per, Tile
from weightbank.formats.fixed_point import FixedPoint
from weightbank.formats.format import Format, Rounding
from weightbank.formats.microscaling import Microscaling
from weightbank.formats.mini_float import MiniFloat
from weightbank.formats.mixed import Mixed
from weightbank.formats.native import Native
from weightbank.formats.packed import Packed
from weightbank.formats.parse import format_of
from weightbank.formats.rounding import key

__all__ = [
    "BlockFloatingPoint",
    "ByDimensions",
    "FixedPoint",
    "Format",
    "Microscaling",
    "MiniFloat",
    "Mixed",
    "Native",
    "Packed",
    "Per",
    "Rounding",
    "Tile",
    "format_of",
    "key",
]

"""On which grid the weights stand: number formats as values, with their true bits and their bytes in a row."""

from weightbank.formats.block_floating_point import BlockFloatingPoint
from weightbank.formats.format import Format, Rounding
from weightbank.formats.native import Native
from weightbank.formats.packed import Packed
from weightbank.formats.parse import format_of

__all__ = ["BlockFloatingPoint", "Format", "Native", "Packed", "Rounding", "format_of"]

"""The one memory of a pool: a flat vector of positions, stored on the grid of a format."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from weightbank.errors import CapacityError, FormatError
from weightbank.formats import Format, Native
from weightbank.formats.finite import refuse_nonfinite
from weightbank.sizes import parse_bytes
from weightbank.types import Flat

LARGEST = 2**40
"""Positions that no pool exceeds."""


@dataclass(frozen=True, eq=False)
class Owner:
    """`size` positions as the bytes of one row of `format`; never written again after it was made.

    Native formats are four or two bytes a position, and `plain` sees them as numbers without a copy. Block formats
    keep the codes of a tile of `format.columns` positions followed by its exponent.
    """

    format: Format
    size: int
    raw: UInt8[Tensor, " B"]

    @classmethod
    def of(cls, values: Flat, format: Format) -> "Owner":
        """`values` rounded to the grid of `format`, shape (N,); float32 vectors are kept as they are, without a copy.

        Raises `NonFiniteError` for NaN and infinities, `FormatError` for numbers beyond the format.
        """
        values = values.detach().contiguous()
        if format == Native("float32"):
            refuse_nonfinite(values)
            return cls(format, len(values), values.view(torch.uint8))
        raw = torch.empty(format.row_bytes(len(values)), dtype=torch.uint8)
        format.encode_row(values, raw)
        return cls(format, len(values), raw)

    @property
    def plain(self) -> Tensor | None:
        """The positions as numbers, shape (N,), a view of the bytes; None where they are codes."""
        return self.raw.view(self.format.dtype) if isinstance(self.format, Native) else None

    @property
    def nbytes(self) -> int:
        """Bytes of the memory."""
        return self.raw.numel()

    def values(self) -> Flat:
        """The positions in float32, shape (N,): a view where they are float32, decoded afresh elsewhere."""
        plain = self.plain
        if plain is not None:
            return plain.float()
        out = torch.empty(1, self.size)
        self.format.decode_rows(self.raw[None], out)
        return out[0]


def positions(capacity: str | int, format: Format) -> int:
    """How many positions of `format` a capacity has: a text such as "280 kB" counts bytes, a number counts weights.

    Raises `FormatError` for another text and for formats without rows, `CapacityError` below one position.

    >>> from weightbank.formats import format_of
    >>> positions("280 kB", format_of("fp32")), positions("280 kB", format_of("bfp8"))
    (70000, 275648)
    """
    format.row_bytes(1)
    if isinstance(capacity, str):
        count = parse_bytes(capacity) // format.row_bytes(format.columns) * format.columns
    elif isinstance(capacity, int) and not isinstance(capacity, bool):
        count = capacity
    else:
        raise FormatError(f"capacity={capacity!r}; wanted bytes as a text such as '280 kB', or a number of weights")
    if not 1 <= count <= LARGEST:
        raise CapacityError(f"capacity={capacity!r} makes {count:,} positions of {format!r}; wanted 1 to {LARGEST:,}")
    return count

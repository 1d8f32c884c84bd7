"""A format for each row of a tensor: output channels that matter more get more bits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from weightbank.errors import FormatError
from weightbank.formats import opaque
from weightbank.formats.coded import Coded
from weightbank.formats.finite import check_out, key_wanted
from weightbank.formats.format import Format, Rounding
from weightbank.formats.native import Native
from weightbank.formats.packed import Packed, check_packed, check_shape, write
from weightbank.formats.rounding import key as key_of

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, repr=False)
class Mixed:
    """Row i of a tensor (index i of its first dimension) is in `formats[int(rows[i], 36)]`.

    Rows of one format are rounded and stored together, as a tensor of their own: a format whose blocks span rows sees
    only those. Only tensors of as many rows as `rows` has digits fit.

    >>> from weightbank.formats import FixedPoint
    >>> Mixed((FixedPoint(4, 2), FixedPoint(8, 6)), "01").quantize(torch.tensor([[0.3, 1.0], [0.3, 1.0]]))
    tensor([[0.2500, 1.0000],
            [0.2969, 1.0000]])
    """

    formats: tuple[Format, ...]
    rows: str

    def __post_init__(self) -> None:
        """Raise FormatError for formats that have no bytes of their own, and for rows without a format."""
        if not isinstance(self.formats, tuple) or not 1 <= len(self.formats) <= len(DIGITS):
            raise FormatError(f"formats is {self.formats!r}; use a tuple of 1 to {len(DIGITS)} formats")
        for format in self.formats:
            if not isinstance(format, Coded | Native):
                raise FormatError(f"{format!r} cannot be the format of a row; use plain formats")
        known = DIGITS[: len(self.formats)]
        if not isinstance(self.rows, str) or not self.rows or set(self.rows) - set(known):
            raise FormatError(f"rows is {self.rows!r:.60}; use one of the digits {known} for each row")

    def __repr__(self) -> str:
        formats = ", ".join(map(repr, self.formats)) + ("," if len(self.formats) == 1 else "")
        return f"Mixed(({formats}), {self.rows!r})"

    @property
    def bits_per_weight(self) -> float:
        """Mean over the rows."""
        return sum(self.formats[int(row, 36)].bits_per_weight for row in self.rows) / len(self.rows)

    def quantize(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = "nearest",
        key: int | None = None,
        out: Tensor | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Round every row to its grid; see `Format.quantize`. Each format has random bits of its own."""
        random = key_wanted(x, rounding, key)
        self._check(tuple(x.shape))
        if out is not None:
            check_out(x, out)
        if torch.compiler.is_compiling():
            values = opaque.quantize(x, repr(self), rounding, random)
            return values if out is None else write(values, out)
        to = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
        for number, format, rows in self._groups():
            to.detach()[rows] = format.quantize(x.detach()[rows], rounding=rounding, key=_own(random, number))
        return to

    def pack(self, x: Float[Tensor, "*shape"], *, rounding: Rounding = "nearest", key: int | None = None) -> Packed:
        """The codes of all rows of the first format, then those of the second, and so on; scales likewise."""
        if torch.compiler.is_compiling():
            return opaque.uncompiled(self.pack)(x, rounding=rounding, key=key)
        random = key_wanted(x, rounding, key)
        self._check(tuple(x.shape))
        parts = [
            format.pack(x[rows], rounding=rounding, key=_own(random, number)) for number, format, rows in self._groups()
        ]
        scales = torch.cat([part.scales.view(torch.int8) for part in parts])
        return Packed(self, tuple(x.shape), torch.cat([part.codes for part in parts]), scales)

    def unpack(self, packed: Packed, *, out: Tensor | None = None) -> Tensor:
        """The values in float32; raises FormatError when the byte counts do not fit the shape."""
        if torch.compiler.is_compiling():
            return opaque.uncompiled(self.unpack)(packed, out=out)
        check_shape(packed)
        self._check(packed.shape)
        groups = [(format, rows, (len(rows), *packed.shape[1:])) for _, format, rows in self._groups()]
        sizes = [_stored(format).packed_bytes(shape) for format, _, shape in groups]
        check_packed(packed, codes=sum(codes for codes, _ in sizes), scales=sum(scales for _, scales in sizes))
        values = torch.empty(packed.shape, device=packed.codes.device)
        code = scale = 0
        for (format, rows, shape), (codes, scales) in zip(groups, sizes, strict=True):
            own = packed.scales[scale : scale + scales]
            stored = own.view(torch.uint8) if isinstance(format, Coded) and format.unsigned_scales else own
            values[rows] = Packed(format, shape, packed.codes[code : code + codes], stored).unpack()
            code, scale = code + codes, scale + scales
        return values if out is None else write(values, out)

    @property
    def columns(self) -> int:
        """0: there is no row layout."""
        return 0

    def row_bytes(self, size: int) -> int:
        """Raises FormatError."""
        raise self._no_row_layout()

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Raises FormatError."""
        raise self._no_row_layout()

    def encode_row(self, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
        """Raises FormatError."""
        raise self._no_row_layout()

    def decode_rows(self, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
        """Raises FormatError."""
        raise self._no_row_layout()

    def _groups(self) -> Iterator[tuple[int, Format, Int64[Tensor, " r"]]]:
        """Number, format and rows, of the formats that are used."""
        for number, format in enumerate(self.formats):
            rows = [row for row, digit in enumerate(self.rows) if int(digit, 36) == number]
            if rows:
                yield number, format, torch.tensor(rows)

    def _check(self, shape: tuple[int, ...]) -> None:
        if not shape or shape[0] != len(self.rows):
            raise FormatError(f"a tensor of shape {shape} came; these are formats for {len(self.rows)} rows")

    def _no_row_layout(self) -> FormatError:
        return FormatError(
            f"{self!r:.80} is for tensors and has no layout for the rows of a log; use BlockFloatingPoint(8, block=64)"
        )


def _own(key: int | None, number: int) -> int | None:
    return None if key is None else key_of(key, "mixed", number)


def _stored(format: Format) -> Coded | Native:
    assert isinstance(format, Coded | Native)
    return format

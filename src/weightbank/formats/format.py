"""What a number format is: a frozen value which rounds, packs, and lays a flat vector out as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from weightbank.formats.packed import Packed

Rounding: TypeAlias = Literal["nearest", "stochastic"]
"""To the nearest point of the grid, ties to the even code; or up or down at random, right on the average."""


@runtime_checkable
class Format(Protocol):
    """A grid of numbers; frozen, hashable, equal by value, and its repr rebuilds it (`format_of(repr(f)) == f`).

    The first half is arithmetic and takes float16, bfloat16, float32 or float64 tensors of any shape on any device,
    outside autograd. The second half is the row interface of the stores: one flat float32 vector on the CPU against
    its bytes, with random access by columns.
    """

    @property
    def bits_per_weight(self) -> float:
        """Bits one weight takes as stored, shared scales included."""

    def quantize(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = "nearest",
        key: int | None = None,
        out: Tensor | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Round `x` to the grid, in float32, as a tensor of its own dtype; idempotent, and 0 stays 0.

        "stochastic" rounding needs a `key` (see `rounding.key`) and depends on it, on x and on nothing else; its
        mean is x to within 2^-24 of a step (2^-(32 - bits) for codes of more than 8 bits) wherever the grid reaches,
        and points of the grid stay. "nearest" draws no bits and ignores `key`. `out` has the shape and dtype of `x`
        and may be `x`; after an error it is undefined. Raises NonFiniteError for NaN and infinities, FormatError for
        values beyond the format and for a missing key.
        """

    def pack(self, x: Float[Tensor, "*shape"], *, rounding: Rounding = "nearest", key: int | None = None) -> Packed:
        """`quantize` as codes and scales with their true bit count; `pack(x).unpack()` equals `quantize(x)`."""

    def unpack(self, packed: Packed, *, out: Tensor | None = None) -> Tensor:
        """The float32 values of `packed`, or into `out` (same shape, any float dtype)."""

    @property
    def columns(self) -> int:
        """Columns per indivisible tile of a stored row; 0 when the format has no row layout."""

    def row_bytes(self, size: int) -> int:
        """Bytes of a row of `size` columns."""

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Byte offset and length, within a row, of the columns `start` up to `stop`.

        `start` must be a multiple of `columns`; `stop` a multiple or the row's end, whose last tile is stored whole.
        """

    def encode_row(self, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
        """Write the bytes of `x` (float32, contiguous) into `out` (contiguous, `row_bytes(P)` long).

        Raises NonFiniteError for NaN and infinities and FormatError for values beyond the format; the bytes of
        `out` are then undefined.
        """

    def decode_rows(self, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
        """Read the bytes of one span of R rows into W columns of float32.

        Both may be strided from row to row but must be contiguous within a row.
        """

"""Block floating point: the weights of a block share one exponent (SWALP, Yang et al., ICML 2019, arXiv 1904.11943)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from weightbank.errors import FormatError
from weightbank.formats import reference
from weightbank.formats.finite import check_out, check_row, check_rows, finite_float32
from weightbank.formats.format import Rounding
from weightbank.formats.packed import Packed, check_packed, write
from weightbank.formats.reference import Grid
from weightbank.jit import available

LARGEST_ROW_BLOCK = 16384


@dataclass(frozen=True, repr=False)
class BlockFloatingPoint:
    """Whole codes of `bits` bits (2..16) times a step of 2^(E - (bits - 2)), E shared by a block.

    `block` weights along the last axis share E (a ragged tail is a smaller block); None: the whole tensor does.
    E = floor(log2 max|x|), clipped to a signed number of `exponent_bits` bits (1..8), beyond which codes saturate.
    `codes`: "full" is -2^(bits-1) .. 2^(bits-1)-1, where a block whose maximum is a negative power of two, -2^k, takes
    E = k - 1 (see `reference.exponents`: this makes quantizing idempotent); "symmetric" leaves the lowest code out, as
    OCP MXINT8 does. The error of a weight is at most half a step, or below one step where it saturates at the top.
    A block of zeros stays zero, subnormals are exact, and results are always finite.
    """

    bits: int
    block: int | None = None
    exponent_bits: int = 8
    codes: Literal["full", "symmetric"] = "full"

    def __post_init__(self) -> None:
        """Raise FormatError for numbers out of range."""
        _check_whole("bits", self.bits, 2, 16)
        _check_whole("exponent_bits", self.exponent_bits, 1, 8)
        if self.block is not None:
            _check_whole("block", self.block, 1, 2**31)
        if self.codes not in ("full", "symmetric"):
            raise FormatError(f'codes is {self.codes!r}; use "full" or "symmetric"')

    def __repr__(self) -> str:
        block = "" if self.block is None else f", block={self.block}"
        exponent = "" if self.exponent_bits == 8 else f", exponent_bits={self.exponent_bits}"
        codes = "" if self.codes == "full" else f", codes={self.codes!r}"
        return f"BlockFloatingPoint({self.bits}{block}{exponent}{codes})"

    @property
    def bits_per_weight(self) -> float:
        """`bits` and the share of the block's exponent, which is stored as a byte (none, for a whole tensor)."""
        return self.bits + (0.0 if self.block is None else 8 / self.block)

    def quantize(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = "nearest",
        key: int | None = None,
        out: Tensor | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Round every block of `x` to its grid; see `Format.quantize`."""
        exponent, code = self._encode(x, rounding)
        values = self._whole(reference.values(self.grid, code, exponent), tuple(x.shape))
        if out is None:
            return values.to(x.dtype)
        check_out(x, out)
        out.detach().copy_(values)
        return out

    def pack(self, x: Float[Tensor, "*shape"], *, rounding: Rounding = "nearest", key: int | None = None) -> Packed:
        """Codes of 8 or 4 bits and one exponent a block; FormatError for other widths. See `Format.pack`."""
        self._check_storable()
        exponent, code = self._encode(x, rounding)
        flat = self._whole(code, tuple(x.shape)).reshape(1, -1)
        if self.bits == 4:
            flat = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
        return Packed(self, tuple(x.shape), reference.pack_codes(flat, self.bits)[0].contiguous(), exponent)

    def unpack(self, packed: Packed, *, out: Tensor | None = None) -> Tensor:
        """The values code * step in float32; raises FormatError when the byte counts do not fit the shape."""
        self._check_storable()
        rows, width, tile = self._tiling(packed.shape)
        blocks = rows * -(-width // tile) if packed.numel else 0
        check_packed(packed, codes=(packed.numel * self.bits + 7) // 8, scales=blocks)
        flat = reference.unpack_codes(packed.codes[None], self.bits)[0, : packed.numel]
        values = reference.values(self.grid, self._blocks(flat.view(packed.shape)), packed.scales)
        return write(self._whole(values, packed.shape), out)

    @property
    def columns(self) -> int:
        """`block`, or 0 without a row layout: rows need 8 or 4 bits and a block of a power of two, whole bytes each."""
        block = self.block or 0
        storable = self.bits in (4, 8) and block * self.bits >= 8 and block <= LARGEST_ROW_BLOCK
        return block if storable and block & (block - 1) == 0 else 0

    def row_bytes(self, size: int) -> int:
        """Bytes of a row: for every tile of `block` columns its codes, then one exponent byte."""
        return -(-size // self._row_block()) * self._tile_bytes()

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Byte offset and length, within a row, of the columns `start` up to `stop`; see `Format.span`."""
        block = self._row_block()
        if not 0 <= start <= stop or start % block:
            raise FormatError(f"columns {start} up to {stop} are not a span; start must be a multiple of {block}")
        return start // block * self._tile_bytes(), -(-(stop - start) // block) * self._tile_bytes()

    def encode_row(self, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
        """Write the tiles of `x` into `out`; with numba one pass and no temporary. Raises NonFiniteError."""
        block = self._row_block()
        check_row(x, out, self.row_bytes(x.numel()))
        if available():
            from weightbank.formats import kernels

            kernels.encode_row(self.grid, block, x.detach(), out)
        else:
            reference.encode_row(self.grid, block, x.detach(), out)

    def decode_rows(self, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
        """Read R spans of tiles into W columns; with numba one pass and no temporary."""
        block = self._row_block()
        check_rows(raw, out, self.row_bytes(out.shape[1]))
        if available():
            from weightbank.formats import kernels

            kernels.decode_rows(self.grid, block, raw, out)
        else:
            reference.decode_rows(self.grid, block, raw, out)

    @property
    def grid(self) -> Grid:
        """The arithmetic inside a block."""
        return Grid(self.bits, self.exponent_bits, self.codes == "symmetric")

    def _encode(self, x: Tensor, rounding: Rounding) -> tuple[Int8[Tensor, " N"], Float[Tensor, "N B"]]:
        blocks = self._blocks(finite_float32(x, rounding))
        exponent = reference.exponents(self.grid, blocks)
        # -2^(E+1) may be an infinity of x's dtype although every x is finite: 2^16 in float16, 2^128 elsewhere
        return exponent, reference.codes(self.grid, blocks, exponent, 15 if x.dtype == torch.float16 else 127)

    def _tiling(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Rows, the width of each, and the width of a block (never wider than a row)."""
        size = torch.Size(shape).numel()
        width = shape[-1] if self.block is not None and shape else size
        return size // max(width, 1), width, max(1, min(width, self.block or width))

    def _blocks(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "N B"]:
        rows, width, tile = self._tiling(tuple(x.shape))
        flat = x.reshape(rows, width)
        if width % tile:
            flat = torch.nn.functional.pad(flat, (0, -width % tile))
        return flat.reshape(-1, tile)

    def _whole(self, blocks: Float[Tensor, "N B"], shape: tuple[int, ...]) -> Float[Tensor, "*shape"]:
        rows, width, _ = self._tiling(shape)
        return blocks.reshape(rows, -1)[:, :width].reshape(shape) if blocks.numel() else blocks.reshape(shape)

    def _check_storable(self) -> None:
        if self.bits not in (4, 8):
            raise FormatError(f"{self!r} can quantize but not be stored: codes of 8 or 4 bits can, {self.bits} cannot")

    def _row_block(self) -> int:
        if not self.columns:
            raise FormatError(
                f"{self!r} has no row layout: rows need 8 or 4 bits and a block which is a power of two up to "
                f"{LARGEST_ROW_BLOCK}, at least one byte of codes; for example BlockFloatingPoint(8, block=64)"
            )
        return self.columns

    def _tile_bytes(self) -> int:
        return self._row_block() * self.bits // 8 + 1


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(f"{name} is {value!r}; use a whole number from {least} to {most}")

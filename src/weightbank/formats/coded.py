"""What all formats of codes do alike: cut a tensor into blocks, round each to its grid, store codes and scales."""

import math
import sys
from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor

from weightbank.errors import FormatError
from weightbank.formats import opaque, rows
from weightbank.formats.bits import group, pack_codes, unpack_codes
from weightbank.formats.blocks import Block, Tile, Tiling, tiling
from weightbank.formats.finite import (
    check_out,
    check_row,
    check_rows,
    finite_float32,
    key_wanted,
    refuse_nonfinite,
)
from weightbank.formats.format import Rounding
from weightbank.formats.grids import UNSCALED, Grid, Scale
from weightbank.formats.packed import Packed, check_packed, check_shape, write
from weightbank.formats.rounding import bits
from weightbank.jit import available

LARGEST_ROW_BLOCK = 16384


class Codec(NamedTuple):
    """The grid inside a block, how a block finds its exponent, and which weights are a block."""

    grid: Grid
    scale: Scale = UNSCALED
    block: Block = None


class Coded(ABC):
    """A format of codes on a grid, given its `codec`; see `Format` for what every method does."""

    @cached_property
    @abstractmethod
    def codec(self) -> Codec:
        """The arithmetic of this format."""

    @property
    def bits_per_weight(self) -> float:
        """Bits of a code and the share of its block's scale, a byte; none where blocks depend on the shape."""
        grid, scale, block = self.codec
        size = block.size if isinstance(block, Tile) else block
        return grid.bits + (8 / size if isinstance(size, int) and not scale.constant else 0.0)

    def quantize(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = "nearest",
        key: int | None = None,
        out: Tensor | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Round every block of `x` to its grid; see `Format.quantize`.

        Contiguous float32 on the CPU, in blocks which follow one another, takes one pass and no temporary (numba);
        anything else takes plain torch and a few temporaries of the size of `x`.
        """
        random = key_wanted(x, rounding, key)
        if out is not None:
            check_out(x, out)
        if torch.compiler.is_compiling():  # before `codec`: a graph cannot hold the lock of a cached property
            values = opaque.quantize(x, repr(self), rounding, random)
            return values if out is None else write(values, out)
        grid, scale, block = self.codec
        blocks = tiling(block, tuple(x.shape))
        if _compiled(blocks, x) and (out is None or _fits(out, x)):
            from weightbank.formats import kernels

            to = torch.empty_like(x) if out is None else out
            if not kernels.quantize(grid, scale, blocks, x.detach(), random, to.detach()):
                refuse_nonfinite(x.detach())
            return _written(to)
        values = blocks.join(self._values(*self._encode(blocks, x, random)), tuple(x.shape)).to(x.dtype)
        return values.contiguous() if out is None else write(values, out)

    def pack(self, x: Float[Tensor, "*shape"], *, rounding: Rounding = "nearest", key: int | None = None) -> Packed:
        """Codes in row-major order without padding between them, and one byte of scale a block; see `Format.pack`."""
        if torch.compiler.is_compiling():
            return opaque.uncompiled(self.pack)(x, rounding=rounding, key=key)
        grid, scale, block = self.codec
        random = key_wanted(x, rounding, key)
        blocks, count = tiling(block, tuple(x.shape)), -(-x.numel() // group(grid.bits)) * group(grid.bits)
        if grid.bits <= 8 and _compiled(blocks, x):
            from weightbank.formats import kernels, row_kernels

            code = torch.zeros(-(-count // 8) * 8, dtype=torch.uint8)
            exponent = torch.zeros(0 if scale.constant else blocks.blocks, dtype=torch.int8)
            if not kernels.codes(grid, scale, blocks, x.detach(), random, code, exponent):
                refuse_nonfinite(x.detach())
            codes, scales = row_kernels.squeezed(code, grid.bits), scale.to_bytes(exponent)
        else:
            code, scales = self._encode(blocks, x, random)
            flat = blocks.join(code, tuple(x.shape)).reshape(1, -1)
            codes = pack_codes(torch.nn.functional.pad(flat, (0, count - flat.numel())), grid.bits)[0]
        size = _code_bytes(x.numel(), grid.bits)
        return Packed(self, tuple(x.shape), codes if len(codes) == size else codes[:size].clone(), scales)

    def unpack(self, packed: Packed, *, out: Tensor | None = None) -> Tensor:
        """The values in float32; raises FormatError when the byte counts do not fit the shape."""
        if torch.compiler.is_compiling():
            return opaque.uncompiled(self.unpack)(packed, out=out)
        grid, scale, block = self.codec
        check_shape(packed)
        blocks = tiling(block, packed.shape)
        code_bytes, scales = self.packed_bytes(packed.shape)
        check_packed(packed, codes=code_bytes, scales=scales, dtype=scale.stored)
        codes = packed.codes
        if grid.bits <= 8 and imported() and blocks.in_order and codes.device.type == "cpu" and codes.is_contiguous():
            from weightbank.formats import row_kernels

            direct = out is not None and _plain(out) and out.shape == packed.shape
            to = out if out is not None and direct else torch.empty(packed.shape)
            row_kernels.unpack(grid, scale, blocks, codes, packed.scales, to.detach())
            return _written(to) if out is None or direct else write(to, out)
        raw = torch.nn.functional.pad(codes, (0, -codes.numel() % (group(grid.bits) * grid.bits // 8)))
        flat = unpack_codes(raw[None], grid.bits, signed=grid.signed)[0, : packed.numel]
        return write(blocks.join(self._values(blocks.split(flat.view(packed.shape)), packed.scales), packed.shape), out)

    def packed_bytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of codes, and scales of a byte each, of a packed tensor of this shape."""
        grid, scale, block = self.codec
        return _code_bytes(math.prod(shape), grid.bits), 0 if scale.constant else tiling(block, shape).blocks

    @property
    def unsigned_scales(self) -> bool:
        """Whether scales are stored as uint8 (E8M0), not int8."""
        return self.codec.scale.stored == torch.uint8

    @cached_property
    def columns(self) -> int:
        """Columns of a tile of a stored row, or 0: rows need blocks of a power of two along the row, of whole bytes."""
        grid, scale, block = self.codec
        if scale.constant:
            return group(grid.bits)
        size = block.size if isinstance(block, Tile) and block.axis == 0 else block
        if not isinstance(size, int) or size > LARGEST_ROW_BLOCK or size * grid.bits % 8:
            return 0
        return size if size & (size - 1) == 0 else 0

    def row_bytes(self, size: int) -> int:
        """Bytes of a row: for every tile its codes, then one byte of scale, if there are scales."""
        return -(-size // self._row_tile()) * self._tile_bytes()

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Byte offset and length, within a row, of the columns `start` up to `stop`; see `Format.span`."""
        tile = self._row_tile()
        if not 0 <= start <= stop or start % tile:
            raise FormatError(f"columns {start} up to {stop} are not a span; start must be a multiple of {tile}")
        return start // tile * self._tile_bytes(), -(-(stop - start) // tile) * self._tile_bytes()

    def encode_row(self, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
        """Write the tiles of `x` into `out`; with numba in one pass. Raises NonFiniteError."""
        tile = self._row_tile()
        check_row(x, out, self.row_bytes(x.numel()))
        grid, scale, _ = self.codec
        if grid.bits <= 8 and available():
            from weightbank.formats import row_kernels

            row_kernels.encode(grid, scale, tile, x.detach(), out)
        else:
            rows.encode(grid, scale, tile, x.detach(), out)

    def decode_rows(self, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
        """Read R spans of tiles into W columns; temporaries of a few MB.

        Only reading does not import numba, which takes 0.1 GB of memory: its loops run where it is imported already.
        """
        tile = self._row_tile()
        check_rows(raw, out, self.row_bytes(out.shape[1]))
        grid, scale, _ = self.codec
        if grid.bits <= 8 and imported():
            from weightbank.formats import row_kernels

            row_kernels.decode(grid, scale, tile, raw, out)
        else:
            rows.decode(grid, scale, tile, raw, out)

    def _encode(
        self, blocks: Tiling, x: Tensor, key: int | None
    ) -> tuple[Int32[Tensor, "N B"], Int8[Tensor, " n"] | UInt8[Tensor, " n"]]:
        """Codes and stored scales of all blocks, in plain torch."""
        grid, scale, _ = self.codec
        split = blocks.split(finite_float32(x))
        random = None
        if key is not None:
            random = blocks.split(bits(key, x.numel(), device=x.device).view(x.shape))
        exponent = scale.exponents(split)
        return grid.codes(split, exponent, random, x.dtype), scale.to_bytes(exponent)

    def _values(
        self, code: Int32[Tensor, "N B"], scales: Int8[Tensor, " n"] | UInt8[Tensor, " n"]
    ) -> Float[Tensor, "N B"]:
        grid, scale, _ = self.codec
        numbers = grid.numbers(code)
        return numbers if scale.constant else numbers.mul_(scale.powers(scales)[:, None])

    def _row_tile(self) -> int:
        if not self.columns:
            raise FormatError(
                f"{self!r} has no row layout: rows need blocks along the row of a power of two up to "
                f"{LARGEST_ROW_BLOCK}, whole bytes of codes each; for example BlockFloatingPoint(8, block=64)"
            )
        return self.columns

    def _tile_bytes(self) -> int:
        grid, scale, _ = self.codec
        return self._row_tile() * grid.bits // 8 + (not scale.constant)


def imported() -> bool:
    """Whether numba is in use already."""
    return "numba" in sys.modules


def _compiled(blocks: Tiling, x: Tensor) -> bool:
    """Whether the loops of `kernels` can take `x`."""
    return _plain(x) and x.numel() > 0 and blocks.in_order and available()


def _plain(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.is_contiguous():
        return False
    try:
        x.detach().numpy()
    except (RuntimeError, TypeError):  # inside torch.func.grad, or another tensor without memory of its own
        return False
    return True


def _fits(out: Tensor, x: Tensor) -> bool:
    """Whether the loops can write `out`: `x` itself, or apart from it."""
    apart = abs(out.data_ptr() - x.data_ptr())
    return out.is_contiguous() and (apart == 0 or apart >= x.nbytes)


def _written(x: Tensor) -> Tensor:
    """Tell autograd that `x` was written to behind its back."""
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return x


def _code_bytes(count: int, bits: int) -> int:
    return (count * bits + 7) // 8

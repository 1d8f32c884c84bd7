"""Codes and scales as bytes, in numba loops: bit for bit what `rows` and `bits` do, and without the GIL.

Imported when first needed, never by `import weightbank`; the loops are compiled then, and cached on disk.
"""

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from weightbank.formats import kernels
from weightbank.formats.blocks import Tiling
from weightbank.formats.finite import refuse_nonfinite
from weightbank.formats.grids import Grid, Scale, Whole
from weightbank.formats.kernels import NOT_FINITE, exponent_of, inline
from weightbank.jit import jit

CHUNK, PIECE = 1 << 16, 4096  # weights encoded and decoded at a time

Bytes: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.int32]


def encode(grid: Grid, scale: Scale, tile: int, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
    """As `rows.encode`, for codes of at most 8 bits; one pass, and for block floating point no temporary."""
    if isinstance(grid, Whole) and not scale.constant and grid.bits in (4, 8):
        loop = _encode8 if grid.bits == 8 else _encode4
        values, tables = x.numpy(), kernels.tables(grid, False)[1:5]
        limits = (scale.half_open, scale.top, scale.least, scale.greatest, scale.bias)
        if not loop(values, values.view(np.int32), out.numpy(), tile, *tables, *limits):
            refuse_nonfinite(x)
        return
    size = max(CHUNK // tile, 1) * tile
    codes = torch.empty(min(size, -(-len(x) // tile) * tile), dtype=torch.uint8)
    exponents = torch.empty(len(codes) // tile, dtype=torch.int8)
    for start in range(0, len(x), size):
        piece = x[start : start + size]
        blocks = Tiling((0,), 1, len(piece), min(tile, len(piece)))
        if not kernels.codes(grid, scale, blocks, piece, None, codes, exponents):
            refuse_nonfinite(x)
        full = -(-len(piece) // tile) * tile
        codes[len(piece) : full].zero_()
        tiles = (full, 1) if scale.constant else (tile, full // tile)
        part = out[_bytes(start, grid, scale, tile) : _bytes(start + full, grid, scale, tile)]
        _lay_down(codes.numpy(), exponents.numpy(), part.numpy(), *tiles, grid.bits, scale.bias, _masks(grid.bits))


def decode(grid: Grid, scale: Scale, tile: int, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
    """As `rows.decode`, for codes of at most 8 bits: one pass, no temporary beyond a tile."""
    if out.numel() == 0:
        return
    if scale.constant:
        tile = PIECE  # any whole bytes
    place = (_flat(raw), raw.stride(0), _flat(out), out.stride(0), *out.shape, tile)
    if isinstance(grid, Whole) and not scale.constant and grid.bits in (4, 8):
        (_decode8 if grid.bits == 8 else _decode4)(*place, _steps(scale, grid.fraction))
    else:
        _decode(*place, grid.bits, _masks(grid.bits), _numbers(grid), not scale.constant, _steps(scale, 0))


def squeezed(codes: UInt8[Tensor, " P"], bits: int) -> UInt8[Tensor, " B"]:
    """One code a byte, a multiple of 8 of them, to no padding between them; in place, the result is a view."""
    if bits < 8:
        _squeeze(codes.numpy(), codes.numpy(), bits, _masks(bits))
    return codes[: len(codes) * bits // 8]


def unpack(
    grid: Grid, scale: Scale, blocks: Tiling, codes: UInt8[Tensor, " B"], scales: Tensor, out: Float[Tensor, "*shape"]
) -> None:
    """The values of codes of at most 8 bits without padding between them, blocks in order, into contiguous float32."""
    steps = _steps(scale, 0)[scales.view(torch.uint8).numpy()] if len(scales) else np.ones(blocks.blocks, np.float32)
    places = (blocks.rows, blocks.width, blocks.tile)
    _unpack(codes.numpy(), steps, out.view(-1).numpy(), *places, grid.bits, _masks(grid.bits), _numbers(grid))


def _bytes(columns: int, grid: Grid, scale: Scale, tile: int) -> int:
    return columns // tile * (tile * grid.bits // 8 + (not scale.constant))


def _flat(rows: Tensor) -> NDArray[Any]:
    """Everything from the first to the last entry of `rows`, gaps included, as one contiguous vector."""
    return rows.as_strided(((len(rows) - 1) * rows.stride(0) + rows.shape[1],), (1,)).numpy()


@cache
def _steps(scale: Scale, fraction: int) -> Floats:
    return scale.power_table(fraction).numpy()


@cache
def _masks(bits: int) -> NDArray[np.uint64]:
    """The lower code of every pair, of every pair of pairs, and the lower four."""
    return np.array(
        [sum(((1 << (bits << lane)) - 1) << at for at in range(0, 64, 16 << lane)) for lane in range(3)], np.uint64
    )


@cache
def _numbers(grid: Grid) -> Floats:
    """What each code of at most 8 bits means at exponent 0."""
    code = torch.arange(1 << grid.bits, dtype=torch.int32)
    if grid.signed:
        code = (code ^ (1 << (grid.bits - 1))) - (1 << (grid.bits - 1))
    return grid.numbers(code).numpy()


@inline
def _codes(
    x: Floats, to: Bytes, first: np.float32, second: np.float32, lowest: np.float32, highest: np.float32
) -> None:
    """`Whole.codes` of one block to nearest, one code a byte; zeros to the end of `to`."""
    for j in range(x.shape[0]):
        to[j] = np.int32(min(max(np.rint(x[j] * first * second), lowest), highest))
    for j in range(x.shape[0], to.shape[0]):
        to[j] = 0


@inline
def _join(codes: Bytes, out: Bytes, bits: int, masks: NDArray[np.uint64]) -> None:
    """Groups of 8 codes, one a byte, to `bits` bytes: pairs side by side, then pairs of pairs, then halves."""
    words = codes[: codes.shape[0] // 8 * 8].view(np.uint64)
    for number in range(words.shape[0]):
        word = words[number]
        for lane in range(3):
            high = (word >> np.uint64((8 - bits) << lane)) & (masks[lane] << np.uint64(bits << lane))
            word = (word & masks[lane]) | high
        for byte in range(bits):
            out[number * bits + byte] = word & np.uint64(255)
            word = word >> np.uint64(8)


@inline
def _part(packed: Bytes, codes: Bytes, bits: int, masks: NDArray[np.uint64]) -> None:
    """The inverse of `_join`."""
    words = codes[: codes.shape[0] // 8 * 8].view(np.uint64)
    for number in range(words.shape[0]):
        word = np.uint64(0)
        for byte in range(bits):
            word |= np.uint64(packed[number * bits + byte]) << np.uint64(8 * byte)
        for turn in range(3):
            lane = 2 - turn
            high = (word & (masks[lane] << np.uint64(bits << lane))) << np.uint64((8 - bits) << lane)
            word = (word & masks[lane]) | high
        words[number] = word


@jit
def _squeeze(codes: Bytes, out: Bytes, bits: int, masks: NDArray[np.uint64]) -> None:
    """Codes of fewer than 8 bits, one a byte, to whole bytes without padding; `out` may be `codes`."""
    if bits == 4:  # a known number of bits unrolls the loops
        _join(codes, out, 4, masks)
    elif bits == 5:
        _join(codes, out, 5, masks)
    elif bits == 6:
        _join(codes, out, 6, masks)
    else:
        _join(codes, out, bits, masks)
    done = codes.shape[0] // 8
    kept, have, byte = np.int64(0), 0, done * bits
    for number in range(done * 8, codes.shape[0]):
        kept |= np.int64((np.int64(codes[number]) & ((1 << bits) - 1)) << have)
        have += bits
        while have >= 8:
            out[byte] = kept & 255
            kept >>= 8
            have -= 8
            byte += 1


@inline
def _expand(packed: Bytes, codes: Bytes, bits: int, masks: NDArray[np.uint64]) -> None:
    """The inverse of `_squeeze`, for any number of codes."""
    if bits == 4:
        _part(packed, codes, 4, masks)
    elif bits == 5:
        _part(packed, codes, 5, masks)
    elif bits == 6:
        _part(packed, codes, 6, masks)
    else:
        _part(packed, codes, bits, masks)
    for number in range(codes.shape[0] // 8 * 8, codes.shape[0]):
        byte, shift = (number * bits) >> 3, (number * bits) & 7
        code = packed[byte] >> shift
        if shift + bits > 8:
            code |= packed[byte + 1] << (8 - shift)
        codes[number] = code & ((1 << bits) - 1)


@jit
def _lay_down(
    codes: Bytes, exponents: NDArray[np.int8], out: Bytes, tile: int, tiles: int, bits: int, bias: int,
    masks: NDArray[np.uint64],
) -> None:  # fmt: skip
    """Every tile of codes into its bytes, and its exponent behind them where there is room."""
    size, each = tile * bits // 8, out.shape[0] // tiles
    for number in range(tiles):
        own, to = codes[number * tile : (number + 1) * tile], out[number * each : (number + 1) * each]
        if bits == 8:
            to[:size] = own
        else:
            _squeeze(own, to, bits, masks)
        if each > size:
            to[size] = exponents[number] + bias


@jit
def _encode8(
    x: Floats,
    bits: Words,
    out: Bytes,
    block: int,
    first: Floats,
    second: Floats,
    lowest: Floats,
    highest: Floats,
    half_open: bool,
    top: int,
    least: int,
    greatest: int,
    bias: int,
) -> bool:
    """False as soon as a block holds a NaN or an infinity."""
    for tile in range(out.shape[0] // (block + 1)):
        start = tile * block
        to = out[tile * (block + 1) : (tile + 1) * (block + 1)]
        exponent = exponent_of(bits[start : start + block], half_open, top, least, greatest)
        if exponent == NOT_FINITE:
            return False
        at = exponent + 128
        _codes(x[start : start + block], to[:block], first[at], second[at], lowest[at], highest[at])
        to[block] = exponent + bias
    return True


@jit
def _encode4(
    x: Floats,
    bits: Words,
    out: Bytes,
    block: int,
    first: Floats,
    second: Floats,
    lowest: Floats,
    highest: Floats,
    half_open: bool,
    top: int,
    least: int,
    greatest: int,
    bias: int,
) -> bool:
    """As above, through one block of bytes taken two by two: the even code is the low byte of a pair."""
    half = block // 2
    codes = np.empty(block, np.uint8)
    pairs = codes.view(np.uint16)
    for tile in range(out.shape[0] // (half + 1)):
        start = tile * block
        to = out[tile * (half + 1) : (tile + 1) * (half + 1)]
        exponent = exponent_of(bits[start : start + block], half_open, top, least, greatest)
        if exponent == NOT_FINITE:
            return False
        at = exponent + 128
        _codes(x[start : start + block], codes, first[at], second[at], lowest[at], highest[at])
        for j in range(half):
            to[j] = (pairs[j] & 0x0F) | ((pairs[j] >> 4) & 0xF0)
        to[half] = exponent + bias
    return True


@jit
def _decode8(
    raw: Bytes,
    raw_stride: int,
    out: Floats,
    out_stride: int,
    rows: int,
    columns: int,
    block: int,
    steps: Floats,
) -> None:
    for row in range(rows):
        for tile in range((columns + block - 1) // block):
            start = row * raw_stride + tile * (block + 1)
            codes = raw[start : start + block + 1]
            to = out[row * out_stride + tile * block : row * out_stride + min((tile + 1) * block, columns)]
            step = steps[codes[block]]
            for j in range(to.shape[0]):
                to[j] = np.float32(np.int8(codes[j])) * step


@jit
def _decode4(
    raw: Bytes,
    raw_stride: int,
    out: Floats,
    out_stride: int,
    rows: int,
    columns: int,
    block: int,
    steps: Floats,
) -> None:
    half = block // 2
    codes = np.empty(block, np.uint8)
    pairs = codes.view(np.uint16)
    for row in range(rows):
        for tile in range((columns + block - 1) // block):
            start = row * raw_stride + tile * (half + 1)
            packed = raw[start : start + half + 1]
            to = out[row * out_stride + tile * block : row * out_stride + min((tile + 1) * block, columns)]
            step = steps[packed[half]]
            for j in range(half):
                pairs[j] = (packed[j] & 0x0F) | ((np.uint16(packed[j]) & 0xF0) << 4)
            for j in range(to.shape[0]):
                to[j] = np.float32(np.int8(codes[j] << 4) >> 4) * step


@jit
def _decode(
    raw: Bytes, raw_stride: int, out: Floats, out_stride: int, rows: int, columns: int, tile: int, bits: int,
    masks: NDArray[np.uint64], numbers: Floats, scaled: bool, steps: Floats,
) -> None:  # fmt: skip
    """Tiles of any codes of at most 8 bits, by a table of their numbers; those of some tiles are expanded at once."""
    size, each = tile * bits // 8, tile * bits // 8 + scaled
    piece = max(PIECE // tile, 1) * tile
    packed, codes = np.zeros(piece * bits // 8, np.uint8), np.zeros(piece, np.uint8)
    for row in range(rows):
        for start in range(0, columns, piece):
            stop = min(start + piece, columns)
            tiles = (stop - start + tile - 1) // tile
            own = raw[row * raw_stride + start // tile * each :]
            if bits < 8:
                for number in range(tiles):
                    length = min(size, ((stop - start - number * tile) * bits + 7) // 8)
                    code = own[number * each : number * each + length]
                    copy = packed[number * size : number * size + length]
                    for byte in range(copy.shape[0]):
                        copy[byte] = code[byte]
                _expand(packed, codes[: stop - start], bits, masks)
            for number in range(tiles):
                step = steps[own[number * each + size]] if scaled else np.float32(1)
                at = row * out_stride + start + number * tile
                to = out[at : at + min(tile, stop - start - number * tile)]
                if bits < 8:
                    code = codes[number * tile : number * tile + to.shape[0]]
                else:
                    code = own[number * each : number * each + to.shape[0]]
                for j in range(to.shape[0]):
                    to[j] = numbers[code[j]] * step


@jit
def _unpack(
    packed: Bytes, steps: Floats, out: Floats, rows: int, width: int, tile: int, bits: int, masks: NDArray[np.uint64],
    numbers: Floats,
) -> None:  # fmt: skip
    """Groups of 8 codes, across the ends of blocks, then the steps of all blocks."""
    codes = np.zeros(4096, np.uint8)
    for start in range(0, out.shape[0], 4096):
        to = out[start : start + 4096]
        own = packed[start * bits // 8 :]
        if bits < 8:
            _expand(own, codes[: to.shape[0]], bits, masks)
            own = codes
        for j in range(to.shape[0]):
            to[j] = numbers[own[j]]
    number = 0
    for row in range(rows):
        for start in range(row * width, (row + 1) * width, tile):
            part = out[start : min(start + tile, (row + 1) * width)]
            for j in range(part.shape[0]):
                part[j] *= steps[number]
            number += 1

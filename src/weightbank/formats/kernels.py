"""Rows of block floating point as numba loops: bit for bit what `reference` does, in one pass and without the GIL.

Imported at the first row, never by `import weightbank`; the loops are compiled then, and cached on disk.
"""

import inspect
import math
from functools import cache
from typing import Any

import numba
import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from weightbank.formats.finite import refuse_nonfinite
from weightbank.formats.reference import Grid
from weightbank.jit import jit

INFINITY = 0x7F800000
LEAST_NORMAL = 0x800000
SIGN = np.int32(-(2**31))
NOT_FINITE = 255  # no exponent


def encode_row(grid: Grid, block: int, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
    """As `reference.encode_row`: x float32, both contiguous, sizes already checked."""
    loop = _encode8 if grid.bits == 8 else _encode4
    values = x.numpy()
    limits = (grid.symmetric, grid.least_exponent, grid.greatest_exponent, grid.highest)
    if not loop(values, values.view(np.int32), out.numpy(), block, *_inverse_steps(grid.bits), *limits):
        refuse_nonfinite(x)


def decode_rows(grid: Grid, block: int, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
    """As `reference.decode_rows`: rows contiguous, sizes already checked."""
    if out.numel():
        loop = _decode8 if grid.bits == 8 else _decode4
        loop(_flat(raw), raw.stride(0), _flat(out), out.stride(0), *out.shape, block, _steps(grid.bits))


def _flat(rows: Tensor) -> NDArray[Any]:
    """Everything from the first to the last entry of `rows`, gaps included, as one contiguous vector."""
    return rows.as_strided(((len(rows) - 1) * rows.stride(0) + rows.shape[1],), (1,)).numpy()


@cache
def _inverse_steps(bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two factors of 1/step for the exponents -128..127: 2^134 is no float32, 2^127 * 2^7 are two."""
    powers = [bits - 2 - exponent for exponent in range(-128, 128)]
    first = [math.ldexp(1, min(power, 127)) for power in powers]
    second = [math.ldexp(1, max(power - 127, 0)) for power in powers]
    return np.array(first, np.float32), np.array(second, np.float32)


@cache
def _steps(bits: int) -> NDArray[np.float32]:
    """The step 2^(E - (bits - 2)) for the exponents -128..127; the least are subnormal and still exact."""
    return np.array([math.ldexp(1, exponent - (bits - 2)) for exponent in range(-128, 128)], np.float32)


def _exponent_loop(bits: NDArray[np.int32], symmetric: bool, least: int, greatest: int) -> int:
    """`reference.exponents` of one block, NOT_FINITE if it holds a NaN or an infinity."""
    positive = np.int32(0)
    negative = np.int32(0)
    for j in range(bits.shape[0]):
        positive = max(positive, bits[j])  # floats of one sign are ordered as their bits are
        negative = max(negative, np.int32(bits[j] ^ SIGN))
    if max(positive, negative) >= INFINITY:
        return NOT_FINITE
    top = int(max(positive, negative if symmetric else negative - 1))
    exponent = (top >> 23) - 127 if top >= LEAST_NORMAL else (top >> 22) - 128
    return max(least, min(greatest, exponent))


def _codes_loop(
    xs: NDArray[np.float32],
    to: NDArray[np.uint8],
    first: np.float32,
    second: np.float32,
    lowest: np.float32,
    highest: np.float32,
) -> None:
    """`reference.codes` of one block, one code a byte; zeros to the end of `to`."""
    for j in range(xs.shape[0]):
        to[j] = np.int32(min(max(np.rint(xs[j] * first * second), lowest), highest))
    for j in range(xs.shape[0], to.shape[0]):
        to[j] = 0


_exponent = jit(_exponent_loop)
_codes = numba.njit(inline="always")(inspect.unwrap(_codes_loop))  # inlined, it runs nearly twice as fast


def _encode8_loop(
    x: NDArray[np.float32],
    bits: NDArray[np.int32],
    out: NDArray[np.uint8],
    block: int,
    scale: NDArray[np.float32],
    rescale: NDArray[np.float32],
    symmetric: bool,
    least: int,
    greatest: int,
    highest: int,
) -> bool:
    """False as soon as a block holds a NaN or an infinity."""
    for tile in range(out.shape[0] // (block + 1)):
        start = tile * block
        to = out[tile * (block + 1) : (tile + 1) * (block + 1)]
        exponent = _exponent(bits[start : start + block], symmetric, least, greatest)
        if exponent == NOT_FINITE:
            return False
        lowest = -highest if symmetric or exponent == 127 else -highest - 1
        first, second = scale[exponent + 128], rescale[exponent + 128]
        _codes(x[start : start + block], to[:block], first, second, np.float32(lowest), np.float32(highest))
        to[block] = exponent
    return True


def _encode4_loop(
    x: NDArray[np.float32],
    bits: NDArray[np.int32],
    out: NDArray[np.uint8],
    block: int,
    scale: NDArray[np.float32],
    rescale: NDArray[np.float32],
    symmetric: bool,
    least: int,
    greatest: int,
    highest: int,
) -> bool:
    """As above, through one block of bytes taken two by two: the even code is the low byte of a pair."""
    half = block // 2
    codes = np.empty(block, np.uint8)
    pairs = codes.view(np.uint16)
    for tile in range(out.shape[0] // (half + 1)):
        start = tile * block
        to = out[tile * (half + 1) : (tile + 1) * (half + 1)]
        exponent = _exponent(bits[start : start + block], symmetric, least, greatest)
        if exponent == NOT_FINITE:
            return False
        lowest = -highest if symmetric or exponent == 127 else -highest - 1
        first, second = scale[exponent + 128], rescale[exponent + 128]
        _codes(x[start : start + block], codes, first, second, np.float32(lowest), np.float32(highest))
        for j in range(half):
            to[j] = (pairs[j] & 0x0F) | ((pairs[j] >> 4) & 0xF0)
        to[half] = exponent
    return True


def _decode8_loop(
    raw: NDArray[np.uint8],
    raw_stride: int,
    out: NDArray[np.float32],
    out_stride: int,
    rows: int,
    columns: int,
    block: int,
    steps: NDArray[np.float32],
) -> None:
    for row in range(rows):
        for tile in range((columns + block - 1) // block):
            start = row * raw_stride + tile * (block + 1)
            codes = raw[start : start + block + 1]
            to = out[row * out_stride + tile * block : row * out_stride + min((tile + 1) * block, columns)]
            step = steps[np.int8(codes[block]) + 128]
            for j in range(to.shape[0]):
                to[j] = np.float32(np.int8(codes[j])) * step


def _decode4_loop(
    raw: NDArray[np.uint8],
    raw_stride: int,
    out: NDArray[np.float32],
    out_stride: int,
    rows: int,
    columns: int,
    block: int,
    steps: NDArray[np.float32],
) -> None:
    half = block // 2
    codes = np.empty(block, np.uint8)
    pairs = codes.view(np.uint16)
    for row in range(rows):
        for tile in range((columns + block - 1) // block):
            start = row * raw_stride + tile * (half + 1)
            packed = raw[start : start + half + 1]
            to = out[row * out_stride + tile * block : row * out_stride + min((tile + 1) * block, columns)]
            step = steps[np.int8(packed[half]) + 128]
            for j in range(half):
                pairs[j] = (packed[j] & 0x0F) | ((np.uint16(packed[j]) & 0xF0) << 4)
            for j in range(to.shape[0]):
                to[j] = np.float32(np.int8(codes[j] << 4) >> 4) * step


_encode8 = jit(_encode8_loop)
_encode4 = jit(_encode4_loop)
_decode8 = jit(_decode8_loop)
_decode4 = jit(_decode4_loop)

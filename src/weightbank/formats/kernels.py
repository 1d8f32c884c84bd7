"""Rounding of blocks as numba loops: bit for bit what `grids` does, in one pass and without the GIL.

Imported when first needed, never by `import weightbank`; the loops are compiled then, and cached on disk. The random
bits are those of `rounding.bits`, made in registers. FIRST_FACTOR[E] * SECOND_FACTOR[E] = 2^-E in two float32.
"""

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numba
import numpy as np
from jaxtyping import Float, Int8, UInt8
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from weightbank.formats import rounding
from weightbank.formats.blocks import Tiling
from weightbank.formats.grids import Grid, Scale, Small, Whole, meanings
from weightbank.jit import jit

INFINITY = 0x7F800000
LEAST_NORMAL = 0x800000
SIGN = np.int32(-(2**31))
NOT_FINITE = 255  # no exponent
PIECE = 4096  # weights looked through before they are rounded, where no scale divides them
FIRST, SECOND = np.uint32(rounding.FIRST), np.uint32(rounding.SECOND)
FINEST = rounding.FINEST
REST = np.uint32(32 - FINEST)

Floats: TypeAlias = NDArray[np.float32]
Words: TypeAlias = NDArray[np.int32]


def quantize(
    grid: Grid, scale: Scale, blocks: Tiling, x: Float[Tensor, "*s"], key: int | None, out: Float[Tensor, "*s"]
) -> bool:
    """Round contiguous float32 `x` into `out`, which may be `x`; False at a NaN or an infinity.

    `blocks` must be in order. One pass to find each block's exponent and one to round it, no temporary.
    """
    values = x.view(-1).numpy()
    loop = _quantize_whole if isinstance(grid, Whole) else _quantize_small
    return bool(loop(values, values.view(np.int32), out.view(-1).numpy(), *_arguments(grid, scale, blocks, key)))


def codes(
    grid: Grid,
    scale: Scale,
    blocks: Tiling,
    x: Float[Tensor, "*s"],
    key: int | None,
    out: UInt8[Tensor, " P"],
    exponents: Int8[Tensor, " N"],
) -> bool:
    """The codes, of at most 8 bits, one a byte, and the exponent of every block; as `quantize` otherwise."""
    values = x.view(-1).numpy()
    loop = _codes_whole if isinstance(grid, Whole) else _codes_small
    arguments = _arguments(grid, scale, blocks, key)
    return bool(loop(values, values.view(np.int32), out.numpy(), exponents.numpy(), *arguments))


def _arguments(grid: Grid, scale: Scale, blocks: Tiling, key: int | None) -> tuple[Any, ...]:
    low, high = (0, 0) if key is None else rounding.halves(key)
    tile = PIECE if scale.constant else blocks.tile
    return (
        *(blocks.rows, blocks.width, tile, key is not None, np.uint32(low), np.uint32(high)),
        *tables(grid, key is not None),
        *(scale.half_open, scale.top, scale.least, scale.greatest),
    )


@cache
def tables(grid: Grid, random: bool) -> tuple[Any, ...]:
    """Digits, two factors of 1/step, bounds and step for the exponents -128..127, then the numbers of a small float."""
    digits = grid.digits if random else 0
    if isinstance(grid, Whole):
        powers = [grid.fraction + digits - exponent for exponent in range(-128, 128)]
        bounds = np.ldexp(np.array([grid.bounds(exponent) for exponent in range(-128, 128)], float), digits)
        steps = _powers([-power + digits for power in powers])
        return np.int32(digits), *_two_powers(powers), bounds[:, 0].astype("f4"), bounds[:, 1].astype("f4"), steps
    assert isinstance(grid, Small)
    largest = np.float32(meanings(grid)[grid.largest].item())
    shift = np.float32(2.0 ** (grid.mantissa - 1 + digits))
    numbers = (largest, np.int32(128 - grid.bias), shift, np.int32(grid.mantissa), np.int32(grid.bits))
    return np.int32(digits), *_two_powers(range(128, -128, -1)), _powers(range(-128, 128)), *numbers


def _powers(exponents: Any) -> Floats:
    return np.array([math.ldexp(1, min(exponent, 127)) for exponent in exponents], np.float32)


def _two_powers(exponents: Any) -> tuple[Floats, Floats]:
    """2^134 is no float32, 2^127 * 2^7 are two."""
    return _powers(exponents), _powers(max(p - 127, 0) for p in exponents)


def inline(function: Callable[..., Any]) -> Any:
    """Inlined, short blocks run twice as fast."""
    return numba.njit(inline="always")(inspect.unwrap(function))


def _bitcast(source: Any, target: Any) -> Any:
    def typed(context: Any, word: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), build

    return intrinsic(inspect.unwrap(typed))


_float_of = _bitcast(types.int32, types.float32)
_bits_of = _bitcast(types.float32, types.int32)


@inline
def exponent_of(bits: Words, half_open: bool, top: int, least: int, greatest: int) -> int:
    """`Scale.exponents` of one block, NOT_FINITE if it holds a NaN or an infinity."""
    positive = np.int32(0)
    negative = np.int32(0)
    for j in range(bits.shape[0]):
        positive = max(positive, bits[j])  # floats of one sign are ordered as their bits are
        negative = max(negative, np.int32(bits[j] ^ SIGN))
    if max(positive, negative) >= INFINITY:
        return NOT_FINITE
    most = int(max(positive, negative - 1 if half_open else negative))
    exponent = (most >> 23) - 127 if most >= LEAST_NORMAL else (most >> 22) - 128
    return max(least, min(greatest, exponent - top))


@inline
def _random(place: np.uint32, second: np.uint32) -> np.uint32:
    """`rounding.bits` of a place to which the first half of the key is added already."""
    x = np.uint32(place ^ (place >> np.uint32(16)))
    x = np.uint32(x * FIRST)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) + second)
    return np.uint32(x * SECOND)


@inline
def _within(t: np.float32, low: np.float32, high: np.float32) -> np.float32:
    t = t if t > low else low
    return t if t < high else high


@inline
def _up_or_down(t: np.float32, random: np.uint32, digits: np.int32) -> np.int32:
    """`rounding.rounded` of t / 2^digits."""
    return np.int32(np.int32(np.int32(t) + np.int32(random >> np.uint32(32 - digits))) >> np.int32(digits))


@inline
def _up_or_down_finest(t: np.float32, random: np.uint32) -> np.int32:
    """The same for FINEST digits, which being known make it faster."""
    return np.int32(np.int32(np.int32(t) + np.int32(random >> REST)) >> np.int32(FINEST))


@inline
def _whole_values(
    x: Floats, to: Floats, random: bool, place: np.uint32, second: np.uint32, digits: np.int32,
    a: np.float32, b: np.float32, low: np.float32, high: np.float32, step: np.float32,
) -> None:  # fmt: skip
    """`Whole.codes` and `Whole.values` of one block."""
    if not random:
        for j in range(x.shape[0]):
            to[j] = np.float32(np.int32(np.rint(_within(x[j] * a * b, low, high)))) * step
    elif digits == FINEST:
        for j in range(x.shape[0]):
            to[j] = np.float32(_up_or_down_finest(_within(x[j] * a * b, low, high), _random(place, second))) * step
            place = np.uint32(place + np.uint32(1))
    else:
        for j in range(x.shape[0]):
            t = _within(x[j] * a * b, low, high)
            to[j] = np.float32(_up_or_down(t, _random(place, second), digits)) * step
            place = np.uint32(place + np.uint32(1))


@inline
def _whole_codes(
    x: Floats, to: NDArray[np.uint8], random: bool, place: np.uint32, second: np.uint32, digits: np.int32,
    a: np.float32, b: np.float32, low: np.float32, high: np.float32,
) -> None:  # fmt: skip
    """`Whole.codes` of one block, one a byte."""
    if not random:
        for j in range(x.shape[0]):
            to[j] = np.int32(np.rint(_within(x[j] * a * b, low, high)))
    else:
        for j in range(x.shape[0]):
            to[j] = _up_or_down_finest(_within(x[j] * a * b, low, high), _random(place, second))
            place = np.uint32(place + np.uint32(1))


@inline
def _field(y: np.float32, least: np.int32) -> np.int32:
    """The biased exponent of y, at least that of the smallest normal number."""
    return max(np.int32((_bits_of(y) >> np.int32(23)) & np.int32(255)), least)


@inline
def _mantissa(
    y: np.float32, field: np.int32, shift: np.float32, random: bool, word: np.uint32, digits: np.int32
) -> np.int32:
    """The signed mantissa of y as a whole number; 2^(1 - e) is a normal number for every exponent e."""
    t = y * _float_of(np.int32(np.int32(255 - field) << np.int32(23))) * shift
    return _up_or_down(t, word, digits) if random else np.int32(np.rint(t))


@inline
def _small_values(
    x: Floats, to: Floats, random: bool, place: np.uint32, second: np.uint32, digits: np.int32,
    a: np.float32, b: np.float32, step: np.float32, largest: np.float32, least: np.int32, shift: np.float32,
    unit: np.float32,
) -> None:  # fmt: skip
    """`Small.codes` and `Small.values` of one block."""
    if random:
        for j in range(x.shape[0]):
            y = _within(x[j] * a * b, -largest, largest)
            field = _field(y, least)
            whole = _mantissa(y, field, shift, True, _random(place, second), digits)
            to[j] = np.float32(whole) * unit * _float_of(np.int32(field << np.int32(23))) * step
            place = np.uint32(place + np.uint32(1))
    else:
        for j in range(x.shape[0]):
            y = _within(x[j] * a * b, -largest, largest)
            field = _field(y, least)
            whole = _mantissa(y, field, shift, False, np.uint32(0), digits)
            to[j] = np.float32(whole) * unit * _float_of(np.int32(field << np.int32(23))) * step


@inline
def _small_codes(
    x: Floats, to: NDArray[np.uint8], random: bool, place: np.uint32, second: np.uint32, digits: np.int32,
    a: np.float32, b: np.float32, largest: np.float32, least: np.int32, shift: np.float32, mantissa: np.int32,
    sign: np.int32,
) -> None:  # fmt: skip
    """`Small.codes` of one block, one a byte."""
    for j in range(x.shape[0]):
        y = _within(x[j] * a * b, -largest, largest)
        field = _field(y, least)
        whole = _mantissa(y, field, shift, random, _random(place, second), digits)
        magnitude = np.int32(np.int32(np.int32(field - least) << mantissa) + abs(whole))
        to[j] = magnitude + (sign if whole < 0 else np.int32(0))
        place = np.uint32(place + np.uint32(1))


@jit
def _quantize_whole(
    x: Floats, bits: Words, out: Floats, rows: int, width: int, tile: int, random: bool, first: np.uint32,
    second: np.uint32, digits: np.int32, a: Floats, b: Floats, low: Floats, high: Floats, steps: Floats,
    half_open: bool, top: int, least: int, greatest: int,
) -> bool:  # fmt: skip
    for row in range(rows):
        for start in range(row * width, (row + 1) * width, tile):
            stop = min(start + tile, (row + 1) * width)
            exponent = exponent_of(bits[start:stop], half_open, top, least, greatest)
            if exponent == NOT_FINITE:
                return False
            at = exponent + 128
            place = np.uint32(np.uint32(start) + first)
            _whole_values(
                x[start:stop],
                out[start:stop],
                random,
                place,
                second,
                digits,
                a[at],
                b[at],
                low[at],
                high[at],
                steps[at],
            )
    return True


@jit
def _codes_whole(
    x: Floats, bits: Words, out: NDArray[np.uint8], exponents: NDArray[np.int8], rows: int, width: int, tile: int,
    random: bool, first: np.uint32, second: np.uint32, digits: np.int32, a: Floats, b: Floats, low: Floats,
    high: Floats, steps: Floats, half_open: bool, top: int, least: int, greatest: int,
) -> bool:  # fmt: skip
    number = 0
    for row in range(rows):
        for start in range(row * width, (row + 1) * width, tile):
            stop = min(start + tile, (row + 1) * width)
            exponent = exponent_of(bits[start:stop], half_open, top, least, greatest)
            if exponent == NOT_FINITE:
                return False
            at = exponent + 128
            place = np.uint32(np.uint32(start) + first)
            _whole_codes(x[start:stop], out[start:stop], random, place, second, digits, a[at], b[at], low[at], high[at])
            if least < greatest:
                exponents[number] = exponent
                number += 1
    return True


@jit
def _quantize_small(
    x: Floats, bits: Words, out: Floats, rows: int, width: int, tile: int, random: bool, first: np.uint32,
    second: np.uint32, digits: np.int32, a: Floats, b: Floats, steps: Floats, largest: np.float32, field: np.int32,
    shift: np.float32, mantissa: np.int32, code_bits: np.int32, half_open: bool, top: int, least: int, greatest: int,
) -> bool:  # fmt: skip
    unit = np.float32(1 / (1 << mantissa))
    for row in range(rows):
        for start in range(row * width, (row + 1) * width, tile):
            stop = min(start + tile, (row + 1) * width)
            exponent = exponent_of(bits[start:stop], half_open, top, least, greatest)
            if exponent == NOT_FINITE:
                return False
            at = exponent + 128
            place = np.uint32(np.uint32(start) + first)
            _small_values(
                x[start:stop], out[start:stop], random, place, second, digits, a[at], b[at], steps[at], largest, field,
                shift, unit,
            )  # fmt: skip
    return True


@jit
def _codes_small(
    x: Floats, bits: Words, out: NDArray[np.uint8], exponents: NDArray[np.int8], rows: int, width: int, tile: int,
    random: bool, first: np.uint32, second: np.uint32, digits: np.int32, a: Floats, b: Floats, steps: Floats,
    largest: np.float32, field: np.int32, shift: np.float32, mantissa: np.int32, code_bits: np.int32, half_open: bool,
    top: int, least: int, greatest: int,
) -> bool:  # fmt: skip
    number = 0
    sign = np.int32(1 << (code_bits - 1))
    for row in range(rows):
        for start in range(row * width, (row + 1) * width, tile):
            stop = min(start + tile, (row + 1) * width)
            exponent = exponent_of(bits[start:stop], half_open, top, least, greatest)
            if exponent == NOT_FINITE:
                return False
            at = exponent + 128
            place = np.uint32(np.uint32(start) + first)
            _small_codes(
                x[start:stop], out[start:stop], random, place, second, digits, a[at], b[at], largest, field, shift,
                mantissa, sign,
            )  # fmt: skip
            if least < greatest:
                exponents[number] = exponent
                number += 1
    return True

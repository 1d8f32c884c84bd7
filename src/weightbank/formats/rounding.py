"""Random bits for stochastic rounding from a counter: a hash of (seed, stream, step) and of the place of the weight.

Rounding up happens with the probability of the fraction, E[round(t)] = t (SWALP, Yang et al., ICML 2019, arXiv
1904.11943, eq. 1). No generator and no state: the same key gives the same bits for any number of threads, on any
device, and in a resumed run.
"""

import hashlib
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from weightbank.errors import FormatError

FIRST, SECOND = 0x7FEB352D, 0x846CA68B  # odd multipliers of good avalanche, from hash prospector's "lowbias32"
FINEST = 24


def key(seed: SupportsIndex, stream: SupportsIndex | str, step: SupportsIndex) -> int:
    """A number of 64 bits for `quantize(..., key=)`: BLAKE2b of the three, so that no two uses share random bits.

    `stream` says what is rounded (a parameter's name and "momentum", or a number), `step` when.
    """
    name = stream if isinstance(stream, str) else index(stream)
    text = repr((index(seed), name, index(step)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bits(key: int, count: int, *, start: int = 0, device: torch.device | str = "cpu") -> Int32[Tensor, " N"]:
    """32 random bits for each of the row-major places `start` up to `start + count` of a tensor, modulo 2^32.

    With the halves a and b of the key: x = i + a; x ^= x >> 16; x *= FIRST; x ^= x >> 15; x += b; x *= SECOND, in 32
    bits without sign. The highest bits are the best mixed.
    """
    first, second = halves(key)
    x = torch.arange(start, start + count, device=device)
    x = (x + first).to(torch.int32)  # wraps: the low 32 bits
    x = x.bitwise_xor_(_shifted(x, 16)).mul_(_signed(FIRST))
    return x.bitwise_xor_(_shifted(x, 15)).add_(_signed(second)).mul_(_signed(SECOND))


def halves(key: int | None) -> tuple[int, int]:
    """The low and the high 32 bits of a key; FormatError for what is no number of 64 bits."""
    if key is None:
        raise FormatError(
            'stochastic rounding draws its bits from a key; give key=weightbank.formats.key(seed, "name", step)'
        )
    if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 2**64:
        raise FormatError(f"key is {key!r}; use a whole number from 0 to 2^64 - 1, as weightbank.formats.key makes")
    return key & 0xFFFFFFFF, key >> 32


def resolution(codes_up_to: int) -> int:
    """Binary digits after the point which decide a rounding: as many as fit 31 bits beside such codes, at most 24."""
    return min(FINEST, 31 - codes_up_to.bit_length())


def rounded(t: Float[Tensor, "*shape"], random: Int32[Tensor, "*shape"] | None, digits: int) -> Int32[Tensor, "*shape"]:
    """Whole numbers for `t`, to the nearest (ties to even) without random bits, else floor(t + u).

    u = k / 2^digits with k from the highest bits, and t cut to as many digits: exact, so that whole numbers stay and
    E[result] = t to within 2^-digits. |t| must not exceed what `resolution` made `digits` for.
    """
    if random is None:
        return t.round().to(torch.int32)
    fixed = (t * 2.0**digits).to(torch.int32)
    return fixed.add_(_shifted(random, 32 - digits)) >> digits


def _shifted(x: Int32[Tensor, "*shape"], by: int) -> Int32[Tensor, "*shape"]:
    return (x >> by) & ((1 << (32 - by)) - 1)  # zeros from the left: torch shifts the sign in


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word

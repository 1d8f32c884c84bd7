"""Block floating point again, slowly or in float64, and tensors made of any finite float32 bits to try it on."""

from fractions import Fraction

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-126, 2.0**-127, -(2.0**-127), 2.0**-149, -(2.0**-149), 3.4028234663852886e38]
SPECIAL += [-3.4028234663852886e38, -(2.0**127), 2.0**127, 0.99999994, -0.99999994, 1.999, -1.999]

finite_floats = st.one_of(
    st.sampled_from(SPECIAL),
    st.floats(-4, 4, width=32),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)


def vectors(least: int = 0, most: int = 200) -> st.SearchStrategy[Tensor]:
    return st.lists(finite_floats, min_size=least, max_size=most).map(lambda xs: torch.tensor(xs, dtype=torch.float32))


def every_bfloat16() -> Tensor:
    """All finite ones, as float32."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(torch.float32)
    return x[x.isfinite()]


def random_bits(count: int, generator: torch.Generator, spread: int | None = None, mantissa_bits: int = 23) -> Tensor:
    """`count` finite floats of random bits; with `spread`, exponents within that many binades of each other.

    Few mantissa bits make powers of two (0) and ties (a few more than a code has).
    """
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator, dtype=torch.int64).to(torch.int32)
    bits = bits & ~((1 << (23 - mantissa_bits)) - 1)
    if spread is None:
        x = bits.view(torch.float32)
        return torch.where(x.isfinite(), x, torch.full_like(x, -torch.finfo(torch.float32).max))
    exponent = torch.randint(0, 255 - spread, (1,), generator=generator, dtype=torch.int32)
    exponent = exponent + torch.randint(0, spread + 1, (count,), generator=generator, dtype=torch.int32)
    return ((bits & ~(0xFF << 23)) | (exponent << 23)).view(torch.float32)


def brute_force(block: list[float], bits: int, symmetric: bool = False) -> list[Fraction]:
    """In exact rationals: the least exponent whose range holds the block, then the nearest of all codes."""
    xs = [Fraction(x) for x in block]
    exponent = -128
    while exponent < 127 and not all(_holds(x, exponent, symmetric) for x in xs):
        exponent += 1
    step = Fraction(2) ** (exponent - (bits - 2))
    lowest = -(2 ** (bits - 1)) + (symmetric or exponent == 127)
    grid = range(lowest, 2 ** (bits - 1))
    return [min(grid, key=lambda code: (abs(x - code * step), code % 2)) * step for x in xs]


def _holds(x: Fraction, exponent: int, symmetric: bool) -> bool:
    limit = Fraction(2) ** (exponent + 1)
    return abs(x) < limit or (x == -limit and not symmetric)


def in_float64(blocks: np.ndarray, bits: int) -> np.ndarray:
    """(N, B) float32 blocks with full codes; every operation is exact in float64."""
    x = blocks.astype(np.float64)
    mantissa, exponent = np.frexp(x)
    exponent = exponent - 1 - (mantissa == -0.5)
    exponent = np.where(x == 0, -128, exponent).max(1, keepdims=True).clip(-128, 127)
    step = np.ldexp(1.0, exponent - (bits - 2))
    code = np.rint(x / step)
    lowest = np.where(exponent == 127, 1 - 2.0 ** (bits - 1), -(2.0 ** (bits - 1)))
    return np.clip(code, lowest, 2.0 ** (bits - 1) - 1) * step

from fractions import Fraction

import numpy as np
import pytest
import torch
from format_oracles import every_bfloat16, random_bits

from weightbank.errors import FormatError
from weightbank.formats import FixedPoint


def oracle(x: np.ndarray, bits: int, fraction: int, symmetric: bool = False) -> np.ndarray:
    """Equation 1 of SWALP to nearest; every operation is exact in float64."""
    low, high = -(2.0 ** (bits - 1)) + symmetric, 2.0 ** (bits - 1) - 1
    return np.clip(np.rint(np.ldexp(x.astype(np.float64), fraction)), low, high) * 2.0**-fraction


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("fraction", [-100, -3, 0, 2, 6, 30, 126])
def test_every_bfloat16_equals_the_oracle(bits, fraction):
    x = every_bfloat16()
    for codes in ("full", "symmetric"):
        quantized = FixedPoint(bits, fraction, codes).quantize(x)
        assert np.array_equal(quantized.numpy(), oracle(x.numpy(), bits, fraction, codes == "symmetric"))


def test_limits_of_the_paper():
    fmt = FixedPoint(8, 6)  # delta = 2^-6, upper 2 - 2^-6, lower -2
    assert fmt.quantize(torch.tensor([5.0, -5.0, 2.0, -2.0, 1e38])).tolist() == [
        2 - 2**-6,
        -2,
        2 - 2**-6,
        -2,
        2 - 2**-6,
    ]


def test_ties_go_to_the_even_code():
    assert FixedPoint(8, 0).quantize(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


def test_random_floats_by_fractions():
    for x in random_bits(300, torch.Generator().manual_seed(0), spread=20).tolist():
        for bits, fraction in ((16, 3), (10, -2), (12, 14)):
            scaled = Fraction(x) * Fraction(2) ** fraction
            code = max(-(2 ** (bits - 1)), min(round(scaled), 2 ** (bits - 1) - 1))  # Fraction rounds half to even
            assert FixedPoint(bits, fraction).quantize(torch.tensor([x])).tolist() == [code * 2.0**-fraction]


@pytest.mark.parametrize("bits", range(2, 17))
def test_results_are_exact_and_finite_in_their_dtype(bits):
    for dtype in (torch.float16, torch.bfloat16):
        most = torch.finfo(dtype).max
        x = torch.tensor([most, -most, 1.0, 1000.0, -1000.0], dtype=dtype)
        for fraction in (-12, -1, 0, 8):
            fmt = FixedPoint(bits, fraction)
            quantized = fmt.quantize(x)
            assert quantized.isfinite().all()
            assert torch.equal(fmt.quantize(quantized.float()), quantized.float())  # on the grid


def test_true_bits():
    packed = FixedPoint(5, 2).pack(torch.ones(11))
    assert (packed.codes.numel(), packed.scales.numel()) == (7, 0)
    assert FixedPoint(5, 2).bits_per_weight == 5


@pytest.mark.parametrize("arguments", [(1, 0), (17, 0), (8, 127), (8, -121), (8, 2.0), (True, 0)])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises((FormatError, TypeError), match="use a whole number from|fraction"):
        FixedPoint(*arguments)


def test_repr():
    assert repr(FixedPoint(8, 6)) == "FixedPoint(8, 6)"
    assert repr(FixedPoint(8, -2, "symmetric")) == "FixedPoint(8, -2, codes='symmetric')"

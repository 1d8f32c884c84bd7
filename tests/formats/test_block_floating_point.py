import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from format_oracles import brute_force, every_bfloat16, finite_floats, in_float64, random_bits, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from weightbank.errors import FormatError, NonFiniteError
from weightbank.formats import BlockFloatingPoint, Per, format_of

EIGHT = BlockFloatingPoint(8)
MOST = torch.finfo(torch.float32).max


def codes_of(x: list[float], fmt: BlockFloatingPoint = EIGHT) -> tuple[int, list[int]]:
    packed = fmt.pack(torch.tensor(x))
    assert packed.scales.shape == (1,)
    return int(packed.scales[0]), packed.codes.view(torch.int8).tolist()


def exponents(x: torch.Tensor, codes: str = "full") -> list[int]:
    return BlockFloatingPoint(8, 1, codes=codes).pack(x).scales.tolist()


# golden vectors


def test_saturation_uses_both_ends_of_the_codes():
    assert codes_of([1.999, -1.999, -1.0, 1.0, 0.0]) == (0, [127, -128, -64, 64, 0])


def test_ties_go_to_the_even_code():
    x = [step / 64 for step in (0.5, 1.5, 2.5, -0.5, -1.5, -2.5)] + [1.0]
    assert codes_of(x) == (0, [0, 2, 2, 0, -2, -2, 64])


def test_zero_block_stays_zero_at_the_least_exponent():
    assert codes_of([0.0, -0.0]) == (-128, [0, 0])
    x = torch.zeros(3, 128)
    x[1, 70] = 0.3
    quantized = BlockFloatingPoint(8, block=64).quantize(x)
    assert quantized.isfinite().all()
    assert quantized.count_nonzero() == 1


@pytest.mark.parametrize("x", [2.0**-57, 2.0**-58, 2.0**-127, 2.0**-130, 2.0**-134, -(2.0**-127)])
def test_tiny_powers_of_two_are_exact(x):
    for block in (None, 1):
        assert BlockFloatingPoint(8, block=block).quantize(torch.tensor([x])).tolist() == [x]


def test_smallest_subnormal_rounds_to_zero_at_the_clipped_exponent():
    assert codes_of([2.0**-149, 2.0**-135, 1.5 * 2.0**-134]) == (-128, [0, 0, 2])  # step 2^-134


def test_exponent_is_exact_at_and_around_every_power_of_two():
    for k in range(-127, 128):
        power = torch.tensor(2.0**k, dtype=torch.float64).to(torch.float32)
        below = torch.nextafter(power, torch.tensor(0.0))
        x = torch.stack([power, below, -power, -below])
        want = [k, max(k - 1, -128), max(k - 1, -128), max(k - 1, -128)]
        assert exponents(x) == want
        assert exponents(x, "symmetric") == [k, *want[1:2], k, *want[3:]]


def test_symmetric_codes_leave_out_the_lowest():
    assert codes_of([1.999, -1.999, -1.0], BlockFloatingPoint(8, codes="symmetric")) == (0, [127, -127, -64])
    assert codes_of([-1.0], BlockFloatingPoint(8, codes="symmetric")) == (0, [-64])


def test_negative_power_of_two_keeps_the_finer_grid():
    assert codes_of([-2.0, 0.03]) == (0, [-128, 2])
    assert codes_of([2.0, 0.03]) == (1, [64, 1])


def test_largest_floats_stay_finite():
    assert codes_of([MOST, -MOST]) == (127, [127, -127])
    for bits in range(2, 17):
        assert BlockFloatingPoint(bits).quantize(torch.tensor([MOST, -MOST])).isfinite().all()


def test_fewer_exponent_bits_saturate_and_underflow():
    three = BlockFloatingPoint(8, exponent_bits=3)  # E in -4..3
    assert codes_of([100.0, -100.0, 1.0], three) == (3, [127, -128, 8])  # step 2^-3
    assert codes_of([2.0**-20, -MOST], BlockFloatingPoint(8, exponent_bits=1)) == (0, [0, -128])
    assert codes_of([2.0**-12, 2.0**-4], three) == (-4, [0, 64])


# against the oracles


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_bfloat16_alone_in_its_block_equals_the_oracle(bits):
    x = every_bfloat16()
    quantized = BlockFloatingPoint(bits, block=1).quantize(x)
    assert np.array_equal(quantized.numpy(), in_float64(x.numpy()[:, None], bits)[:, 0])
    assert torch.equal(BlockFloatingPoint(bits, block=1).quantize(quantized), quantized)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_bfloat16_in_a_block_of_two_equals_the_oracle(bits):
    generator = torch.Generator().manual_seed(bits)
    x = every_bfloat16()
    near = x * torch.exp2(torch.randint(-6, 7, x.shape, generator=generator)) * torch.rand(x.shape, generator=generator)
    near = torch.where(near.isfinite(), near, x)
    anything = x[torch.randperm(len(x), generator=generator)]
    halves = torch.where(x.abs() < MOST / 4, -2 * x.sign() * torch.exp2(torch.floor(torch.log2(x.abs()))), x)
    halves = torch.where(halves.isfinite(), halves, x)
    for other in (near, anything, halves, -x):
        blocks = torch.stack([x, other], dim=1)
        quantized = BlockFloatingPoint(bits, block=2).quantize(blocks)
        assert np.array_equal(quantized.numpy(), in_float64(blocks.numpy(), bits))
        assert torch.equal(BlockFloatingPoint(bits, block=2).quantize(quantized), quantized)


@settings(deadline=None, max_examples=60)
@given(st.lists(finite_floats, min_size=1, max_size=5), st.integers(2, 6), st.booleans())
def test_definition_by_brute_force(xs, bits, symmetric):
    fmt = BlockFloatingPoint(bits, codes="symmetric" if symmetric else "full")
    quantized = fmt.quantize(torch.tensor(xs)).tolist()
    assert [Fraction(x) for x in quantized] == brute_force(torch.tensor(xs).tolist(), bits, symmetric)


@settings(deadline=None, max_examples=200)
@given(vectors(1), st.integers(2, 16), st.sampled_from([None, 1, 2, 3, 7, 64]), st.integers(1, 8), st.booleans())
def test_quantizing_twice_changes_nothing(x, bits, block, exponent_bits, symmetric):
    fmt = BlockFloatingPoint(bits, block, exponent_bits, "symmetric" if symmetric else "full")
    once = fmt.quantize(x)
    assert torch.equal(fmt.quantize(once), once)
    assert once.isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_quantizing_twice_changes_nothing_on_a_million_random_bits(bits):
    generator = torch.Generator().manual_seed(bits)
    tight = [random_bits(2**15, generator, spread, mantissa) for spread in range(4) for mantissa in (0, bits, 23)]
    for x in (random_bits(2**18, generator), *tight):
        for codes in ("full", "symmetric"):
            fmt = BlockFloatingPoint(bits, 8, codes=codes)
            once = fmt.quantize(x)
            assert torch.equal(fmt.quantize(once), once)


def test_a_lowest_code_does_not_coarsen_the_grid_when_quantized_again():
    fmt = BlockFloatingPoint(8, block=4)
    once = fmt.quantize(torch.tensor([-1.999, 3 / 64, 0.0, 0.0]))
    assert once.tolist() == [-2.0, 3 / 64, 0.0, 0.0]  # with E + 1 the odd code 3 would move to 2
    assert torch.equal(fmt.quantize(once), once)


@settings(deadline=None)
@given(vectors(1), st.integers(2, 10))
def test_error_is_half_a_step_or_one_where_saturated(x, bits):
    fmt, block = BlockFloatingPoint(bits), x.double()
    step = 2.0 ** (int(fmt.pack(x).scales[0]) - (bits - 2))
    error = (fmt.quantize(x).double() - block).abs()
    top = block.abs() > (2 ** (bits - 1) - 0.5) * step
    assert (error[~top] <= step / 2).all()
    assert (error[top] <= step).all()


def test_error_on_gaussian_blocks_matches_the_measured_signal_to_noise():
    # measured with an independent quantizer on N(0, 0.02) weights whose channels spread log-normally (0.5);
    # other draws of the channels move these by about 0.1 dB
    generator = torch.Generator().manual_seed(0)
    channels = torch.exp(0.5 * torch.randn(512, 1, generator=generator))
    x = 0.02 * torch.randn(512, 1152, generator=generator) * channels
    measured = {
        8: {128: 40.3, 32: 42.0, 16: 43.0},
        6: {128: 28.3, 32: 30.0, 16: 31.0},
        4: {128: 16.3, 32: 17.9, 16: 18.9},
    }
    for bits, blocks in measured.items():
        for block, decibels in blocks.items():
            noise = (BlockFloatingPoint(bits, block).quantize(x) - x).square().mean()
            assert 10 * math.log10(x.square().mean() / noise) == pytest.approx(decibels, abs=0.2)


# shapes, dtypes, blocks


def test_blocks_run_along_the_last_axis_with_a_ragged_tail():
    fmt = BlockFloatingPoint(8, block=4)
    x = torch.randn(3, 2, 10, generator=torch.Generator().manual_seed(1))
    for row in range(3):
        for column in range(2):
            for start in (0, 4, 8):
                tile = x[row, column, start : start + 4]
                whole = BlockFloatingPoint(8).quantize(tile)
                assert torch.equal(fmt.quantize(x)[row, column, start : start + 4], whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", range(2, 17))
def test_other_dtypes_hold_the_float32_result_exactly(dtype, bits):
    generator = torch.Generator().manual_seed(bits)
    x = (torch.randn(640, generator=generator) * 2.0 ** torch.randint(-24, 14, (640,), generator=generator)).to(dtype)
    x[0] = torch.finfo(torch.float16).max
    fmt = BlockFloatingPoint(bits, block=64)
    quantized = fmt.quantize(x)
    assert quantized.dtype == dtype
    assert torch.equal(quantized.float(), fmt.quantize(x.float()))


def test_largest_dtype_values_stay_finite_in_their_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype)
        for bits in range(2, 17):
            assert BlockFloatingPoint(bits).quantize(x).isfinite().all()


def test_out_may_be_the_input_and_nothing_else_changes():
    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(2))
    kept, fmt = x.clone(), BlockFloatingPoint(6, block=64)
    want = fmt.quantize(x)
    assert torch.equal(x, kept)
    assert fmt.quantize(x, out=x) is x
    assert torch.equal(x, want)


def test_out_of_another_shape_or_dtype_is_refused():
    x = torch.zeros(4)
    for out in (torch.zeros(1, 4), torch.zeros(4, dtype=torch.float64)):
        with pytest.raises(FormatError, match="give them the same"):
            BlockFloatingPoint(8).quantize(x, out=out)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused_with_its_place(bad):
    x = torch.zeros(2, 100)
    x[1, 7] = bad
    for fmt in (BlockFloatingPoint(8), BlockFloatingPoint(8, block=64)):
        with pytest.raises(NonFiniteError, match="entry 107 of 200"):
            fmt.quantize(x)
        with pytest.raises(NonFiniteError, match="entry 107 of 200"):
            fmt.pack(x)


def test_float64_beyond_float32_is_refused_not_made_infinite():
    with pytest.raises(FormatError, match=r"1e\+300 does not fit float32"):
        BlockFloatingPoint(8).quantize(torch.tensor([1e300], dtype=torch.float64))


@pytest.mark.parametrize(
    "arguments", [(1,), (17,), (8, 0), (8, -4), (8, 64, 0), (8, 64, 9), (True,), (8, True), (8, 2**40)]
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(FormatError, match="use a whole number from"):
        BlockFloatingPoint(*arguments)


def test_formats_are_values():
    assert BlockFloatingPoint(8, block=64) == BlockFloatingPoint(8, 64)
    assert len({BlockFloatingPoint(8, 64), BlockFloatingPoint(8, block=64), BlockFloatingPoint(8)}) == 2


@pytest.mark.parametrize("fmt", [BlockFloatingPoint(6, 2), BlockFloatingPoint(8), BlockFloatingPoint(8, 48)])
def test_formats_without_a_row_layout_say_so(fmt):
    assert fmt.columns == 0
    for call in (lambda: fmt.row_bytes(10), lambda: fmt.span(0, 10)):
        with pytest.raises(FormatError, match="has no row layout"):
            call()


def test_row_blocks_are_powers_of_two_of_whole_bytes():
    with_rows = [block for block in range(1, 20000) if BlockFloatingPoint(8, block).columns]
    assert with_rows == [2**k for k in range(15)]
    assert BlockFloatingPoint(4, 1).columns == 0
    assert BlockFloatingPoint(4, 2).columns == 2


def test_bits_per_weight_is_what_long_rows_take():
    for fmt in (BlockFloatingPoint(8, 64), BlockFloatingPoint(4, 32), BlockFloatingPoint(8, 1)):
        assert fmt.row_bytes(2**20) * 8 / 2**20 == fmt.bits_per_weight


# the published quantizer


def published(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Nearest rounding as published with SWALP: one exponent per row, from a logarithm in float32."""
    exponent = torch.floor(torch.log2(x.abs().amax(1, keepdim=True))).clamp(-128, 127)
    code = torch.round(x * 2 ** (-exponent + bits - 2)).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return code * 2 ** (exponent - (bits - 2))


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_nearest_is_the_published_quantizer_away_from_powers_of_two(bits):
    generator = torch.Generator().manual_seed(bits)
    for scale in (1e-20, 0.02, 1.0, 3e10):
        x = torch.randn(512, 96, generator=generator) * scale
        most = x.abs().amax(1)
        fraction = torch.frexp(most)[0]
        clear = (fraction > 0.5) & (fraction < 1 - 2.0**-16)  # the logarithm errs in the last ulps below a power of two
        assert clear.sum() > 500
        assert torch.equal(BlockFloatingPoint(bits, Per(0)).quantize(x)[clear], published(x, bits)[clear])


def test_the_published_exponent_is_one_too_large_just_below_powers_of_two():
    x = torch.tensor([[2.0**20]]).nextafter(torch.tensor([[0.0]]))
    assert published(x, 8) == 2.0**20
    assert BlockFloatingPoint(8).quantize(x) == 127 * 2.0**13


@pytest.mark.parametrize("fmt", [BlockFloatingPoint(8, 4), format_of("mxfp4_e2m1"), format_of("bf16")], ids=repr)
def test_what_is_no_dense_tensor_is_refused_and_one_without_values_keeps_its_shape(fmt):
    for wrong in [1.0, 2.0], "a", torch.eye(3).to_sparse():
        for operation in type(fmt).quantize, type(fmt).pack:
            with pytest.raises(FormatError, match="make it a dense tensor"):
                operation.__wrapped__(fmt, wrong)
    assert fmt.quantize(torch.empty(3, 5, device="meta")).shape == (3, 5)

import numpy as np
import pytest
import torch
from format_oracles import random_bits

from weightbank.errors import FormatError, NonFiniteError
from weightbank.formats import Native


def test_bfloat16_is_nearest_even_on_the_upper_sixteen_bits():
    x = random_bits(2**16, torch.Generator().manual_seed(0))
    x = x[x.abs() < 3.38e38]
    bits = x.numpy().view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    assert np.array_equal(Native("bfloat16").quantize(x).numpy(), rounded.astype(np.uint32).view(np.float32))


def test_float16_is_what_numpy_rounds_to():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(1)) * 1e-4
    assert np.array_equal(Native("float16").quantize(x).numpy(), x.numpy().astype(np.float16).astype(np.float32))


def test_float32_is_the_identity_on_a_copy():
    x = torch.tensor([1.1, -0.0, 2.0**-149])
    quantized = Native("float32").quantize(x)
    assert torch.equal(quantized, x)
    assert quantized.data_ptr() != x.data_ptr()


def test_quantizing_twice_changes_nothing():
    x = random_bits(2**12, torch.Generator().manual_seed(2))
    for fmt in (Native("bfloat16"), Native("float16")):
        once = fmt.quantize(x[x.abs() < 60000])
        assert torch.equal(fmt.quantize(once), once)


def test_values_beyond_float16_are_refused_not_made_infinite():
    fmt, x = Native("float16"), torch.tensor([1.0, -65536.0])
    out = torch.empty(fmt.row_bytes(2), dtype=torch.uint8)
    for call in (lambda: fmt.encode_row(x, out), lambda: fmt.quantize(x), lambda: fmt.pack(x)):
        with pytest.raises(FormatError, match=r"65536 does not fit float16, whose largest is 65504; use .*bfloat16"):
            call()
    fmt.encode_row(torch.tensor([65504.0, -65504.0]), out)


def test_values_beyond_bfloat16_are_refused_not_made_infinite():
    with pytest.raises(FormatError, match=r"does not fit bfloat16.*use Native\('float32'\)"):
        Native("bfloat16").quantize(torch.tensor([torch.finfo(torch.float32).max]))


def test_infinities_are_not_taken_for_large_numbers():
    with pytest.raises(NonFiniteError, match="entry 1 of 2 is inf"):
        Native("float16").quantize(torch.tensor([0.0, torch.inf]))


def test_other_names_are_refused():
    with pytest.raises(FormatError, match="'float8' is not a native float; use one of float32, bfloat16, float16"):
        Native("float8")


def test_out_may_be_a_parameter():
    weight = torch.nn.Parameter(torch.tensor([1.001, 2.0]))
    Native("bfloat16").quantize(weight, out=weight)
    assert weight.tolist() == [1.0, 2.0]


def test_tensors_of_eight_bit_floats_are_refused():
    with pytest.raises(FormatError, match=r"torch\.float8_e4m3fn cannot be quantized; convert it"):
        Native("float32").quantize(torch.ones(2).to(torch.float8_e4m3fn))

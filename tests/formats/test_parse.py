import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightbank.errors import FormatError
from weightbank.formats import BlockFloatingPoint, Native, format_of


@given(
    st.builds(
        BlockFloatingPoint,
        st.integers(2, 16),
        st.none() | st.integers(1, 2**31),
        st.integers(1, 8),
        st.sampled_from(["full", "symmetric"]),
    )
)
def test_repr_rebuilds_block_floating_point(fmt):
    assert format_of(repr(fmt)) == fmt


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_repr_and_dtype_rebuild_native(name):
    assert format_of(repr(Native(name))) == Native(name)
    assert format_of(getattr(torch, name)) == Native(name)


def test_repr_is_minimal():
    assert repr(BlockFloatingPoint(8)) == "BlockFloatingPoint(8)"
    assert repr(BlockFloatingPoint(8, 64)) == "BlockFloatingPoint(8, block=64)"
    assert repr(BlockFloatingPoint(4, None, 5, "symmetric")) == (
        "BlockFloatingPoint(4, exponent_bits=5, codes='symmetric')"
    )
    assert repr(Native("bfloat16")) == "Native('bfloat16')"


def test_short_names():
    assert format_of("fp32") == Native("float32")
    assert format_of("bf16") == Native("bfloat16")
    assert format_of("fp16") == Native("float16")
    assert format_of("bfp8") == BlockFloatingPoint(8, block=64)
    assert format_of("bfp4") == BlockFloatingPoint(4, block=32)


def test_a_format_passes_unchanged():
    fmt = BlockFloatingPoint(6)
    assert format_of(fmt) is fmt


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "BlockFloatingPoint(__import__('os'))",
        "BlockFloatingPoint(4 + 4)",
        "BlockFloatingPoint(8.0)",
        "BlockFloatingPoint([8])",
        "BlockFloatingPoint(*[8])",
        "BlockFloatingPoint(8, **{'block': 64})",
        "BlockFloatingPoint(8, size=64)",
        "BlockFloatingPoint(8)(8)",
        "BlockFloatingPoint",
        "weightbank.formats.Native('float32')",
        "lambda: 0",
        "int8",
        "",
        "\0",
        "(" * 150,
        "-" * 190 + "1",
        "BlockFloatingPoint(" + "8" * 10_000 + ")",
    ],
)
def test_text_which_is_not_a_format_is_refused_with_the_accepted_forms(text):
    with pytest.raises(FormatError, match=r"fp32, bf16, fp16, bfp8, bfp4.*torch\.float32.*BlockFloatingPoint\(8"):
        format_of(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("BlockFloatingPoint(99)", "bits is 99"),
        ("BlockFloatingPoint(8, exponent_bits=9)", "exponent_bits is 9"),
        ("BlockFloatingPoint(True)", "bits is True"),
        ("Native('float8')", "float8"),
    ],
)
def test_a_known_class_with_bad_numbers_says_which(text, reason):
    with pytest.raises(FormatError, match=reason):
        format_of(text)


def test_other_dtypes_are_refused():
    with pytest.raises(FormatError, match=r"torch\.int8 is not a number format"):
        format_of(torch.int8)

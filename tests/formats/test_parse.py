import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightbank.errors import FormatError
from weightbank.formats import (
    BlockFloatingPoint,
    ByDimensions,
    FixedPoint,
    Microscaling,
    MiniFloat,
    Native,
    Per,
    Tile,
    format_of,
)

numbers = st.integers(-8, 7)
splits = st.builds(lambda dims: Per(*dims), st.lists(numbers, min_size=1, max_size=4, unique=True))
splits = splits | st.builds(Tile, numbers, st.integers(1, 2**31))
blocks = st.none() | st.integers(1, 2**31) | splits | st.builds(ByDimensions, st.integers(0, 5), splits)


@given(
    st.builds(
        BlockFloatingPoint,
        st.integers(2, 16),
        blocks,
        st.integers(1, 8),
        st.sampled_from(["full", "symmetric"]),
    )
)
def test_repr_rebuilds_block_floating_point(fmt):
    assert format_of(repr(fmt)) == fmt


@given(
    st.builds(FixedPoint, st.integers(2, 16), st.integers(-112, 126), st.sampled_from(["full", "symmetric"]))
    | st.builds(MiniFloat, st.integers(2, 6), st.integers(1, 9), st.none() | st.integers(0, 127))
    | st.builds(MiniFloat, st.integers(2, 4), st.just(3), st.none(), st.sampled_from(["ieee", "nan", "none"]))
    | st.builds(Microscaling, st.sampled_from(["mxint8", "mxfp4_e2m1"]), numbers, st.integers(1, 2**31))
)
def test_repr_rebuilds_the_other_formats(fmt):
    assert format_of(repr(fmt)) == fmt
    assert hash(format_of(repr(fmt))) == hash(fmt)


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
    assert format_of("bfp6") == BlockFloatingPoint(6, block=32)
    assert format_of("bfp5") == BlockFloatingPoint(5, block=32)
    assert format_of("bfp4") == BlockFloatingPoint(4, block=32)
    assert format_of("fp8_e4m3") == MiniFloat(4, 3, specials="nan")
    for name in ("mxint8", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4_e2m1"):
        assert format_of(name) == Microscaling(name)
        assert format_of(name).columns == 32


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
        "BlockFloatingPoint(8, block=Per())(1)",
        "BlockFloatingPoint(8, block=print(1))",
        "BlockFloatingPoint(8, block=Native('float32'))",
        "BlockFloatingPoint(--8)",
        "BlockFloatingPoint(-None)",
        "Per(0)",
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
    with pytest.raises(FormatError, match=r"fp32, bf16, fp16, bfp8, bfp6.*torch\.float32.*BlockFloatingPoint\(8"):
        format_of(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("BlockFloatingPoint(99)", "bits is 99"),
        ("BlockFloatingPoint(8, exponent_bits=9)", "exponent_bits is 9"),
        ("BlockFloatingPoint(True)", "bits is True"),
        ("Native('float8')", "float8"),
        ("BlockFloatingPoint(8, block=Per())", "at least one dimension"),
        ("BlockFloatingPoint(8, block=ByDimensions(1, Per(0, 0)))", "none twice"),
        ("FixedPoint(8, 500)", "fraction is 500"),
    ],
)
def test_a_known_class_with_bad_numbers_says_which(text, reason):
    with pytest.raises(FormatError, match=reason):
        format_of(text)


def test_other_dtypes_are_refused():
    with pytest.raises(FormatError, match=r"torch\.int8 is not a number format"):
        format_of(torch.int8)

import pytest
import torch
from format_oracles import vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from weightbank.errors import FormatError
from weightbank.formats import (
    BlockFloatingPoint,
    ByDimensions,
    FixedPoint,
    Microscaling,
    MiniFloat,
    Native,
    Packed,
    Tile,
    format_of,
)

FORMATS = [
    Native("float32"),
    Native("bfloat16"),
    Native("float16"),
    BlockFloatingPoint(8),
    BlockFloatingPoint(4),
    BlockFloatingPoint(8, block=64),
    BlockFloatingPoint(4, block=32),
    BlockFloatingPoint(4, block=3, codes="symmetric"),
    BlockFloatingPoint(8, block=5, exponent_bits=4),
    BlockFloatingPoint(6, block=32),
    BlockFloatingPoint(5),
    BlockFloatingPoint(7, block=Tile(0, 2)),
    BlockFloatingPoint(3, block=ByDimensions()),
    BlockFloatingPoint(12, block=3),
    FixedPoint(6, 3),
    FixedPoint(11, 6),
    MiniFloat(4, 3, specials="nan"),
    MiniFloat(3, 2, specials="none"),
    MiniFloat(6, 6),
    Microscaling("mxint8"),
    Microscaling("mxfp6_e3m2"),
    Microscaling("mxfp4_e2m1", axis=0),
]
SMALL = [fmt for fmt in FORMATS if isinstance(fmt, BlockFloatingPoint)]
SHAPES = [(), (1,), (7,), (64,), (3, 10), (2, 3, 65), (0,), (3, 0), (0, 5), (4, 1)]


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpacked_equals_quantized(fmt, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fmt.pack(x).unpack(), fmt.quantize(x))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_non_contiguous_tensors_pack_as_their_copies_do(fmt):
    x = torch.randn(6, 10, 4, generator=torch.Generator().manual_seed(1)).permute(2, 0, 1)[:, ::2]
    packed, copied = fmt.pack(x), fmt.pack(x.contiguous())
    assert torch.equal(packed.codes, copied.codes)
    assert torch.equal(packed.scales, copied.scales)
    assert torch.equal(packed.unpack(), fmt.quantize(x))


@settings(deadline=None, max_examples=100)
@given(vectors(), st.sampled_from(SMALL), st.integers(1, 4))
def test_unpacked_equals_quantized_for_any_finite_bits(x, fmt, rows):
    x = x[: x.numel() // rows * rows].view(rows, -1)
    unpacked, quantized = fmt.pack(x).unpack(), fmt.quantize(x)
    assert torch.equal(unpacked.view(torch.int32), quantized.view(torch.int32))  # the signs of zeros too


@pytest.mark.parametrize("fmt", FORMATS[2:], ids=repr)
def test_half_precision_input_unpacks_to_its_quantized_values(fmt):
    x = torch.tensor([65504.0, -65504.0, 2.0**-24, 0.1], dtype=torch.float16)
    packed = fmt.pack(x).unpack(torch.empty(4, dtype=torch.float16))
    assert torch.equal(packed, fmt.quantize(x))
    assert packed.isfinite().all()


def test_true_bit_count():
    x = torch.ones(3, 65)
    sizes = {
        Native("float32"): (780, 0),
        Native("bfloat16"): (390, 0),
        BlockFloatingPoint(8, block=64): (195, 6),  # two blocks a row, codes unpadded
        BlockFloatingPoint(4, block=64): (98, 6),
        BlockFloatingPoint(4): (98, 1),
        BlockFloatingPoint(6, block=64): (147, 6),
        BlockFloatingPoint(5): (122, 1),
        FixedPoint(3, 1): (74, 0),
        format_of("fp6_e3m2"): (147, 0),
        format_of("mxfp4_e2m1"): (98, 9),
    }
    for fmt, (codes, scales) in sizes.items():
        packed = fmt.pack(x)
        assert (packed.codes.numel(), packed.scales.numel(), packed.nbytes) == (codes, scales, codes + scales)


def test_literal_codes_and_scales():
    packed = BlockFloatingPoint(4, block=2).pack(torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, -4.0]]))
    assert packed.codes.tolist() == [0xC4, 0x04, 0x80]
    assert packed.scales.tolist() == [0, -1, -128, 1]


def test_packed_shares_no_memory_with_its_input():
    for fmt in FORMATS:
        x = torch.ones(8)
        packed = fmt.pack(x)
        x.zero_()
        assert packed.unpack().eq(1).all()
        packed.unpack().zero_()
        assert packed.unpack().eq(1).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_bytes_which_do_not_fit_the_shape_are_refused(fmt):
    packed = fmt.pack(torch.ones(4, 6))
    for shape in ((4, 9), (5, 5), (-4, -6), (2**40, 2**20)):
        with pytest.raises(FormatError, match="needs"):
            Packed(fmt, shape, packed.codes, packed.scales).unpack()
    with pytest.raises(FormatError, match="needs"):
        Packed(fmt, (4, 6), packed.codes, torch.zeros(99, dtype=torch.int8)).unpack()


def test_unpack_into_a_wrong_shape_is_refused():
    with pytest.raises(FormatError, match=r"out is \(2, 2\), but the packed tensor is \(4,\)"):
        BlockFloatingPoint(8).pack(torch.ones(4)).unpack(torch.empty(2, 2))

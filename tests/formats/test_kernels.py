import itertools
import subprocess
import sys

import pytest
import torch
from format_oracles import random_bits

from weightbank.formats import (
    BlockFloatingPoint,
    FixedPoint,
    Microscaling,
    MiniFloat,
    Native,
    Per,
    format_of,
    key,
    rows,
)
from weightbank.formats.bits import group, pack_codes, unpack_codes
from weightbank.formats.blocks import tiling
from weightbank.formats.coded import Coded

numba = pytest.importorskip("numba")
from weightbank.formats import kernels, row_kernels  # noqa: E402

BLOCKS = [
    BlockFloatingPoint(bits, block, exponent_bits, codes)
    for bits in (8, 4)
    for block in (2, 32, 64, 1024)
    for exponent_bits, codes in ((8, "full"), (8, "symmetric"), (5, "full"), (1, "symmetric"))
]
OTHERS = [
    BlockFloatingPoint(6, 32),
    BlockFloatingPoint(6, 4),
    BlockFloatingPoint(7, 8),
    BlockFloatingPoint(5, 64, codes="symmetric"),
    BlockFloatingPoint(3, 8, exponent_bits=4),
    BlockFloatingPoint(2, 4),
    FixedPoint(8, 6),
    FixedPoint(8, 110),
    FixedPoint(7, -110),
    FixedPoint(5, 2),
    FixedPoint(4, 2, "symmetric"),
    MiniFloat(4, 3, specials="nan"),
    MiniFloat(4, 3, bias=-20, specials="none"),
    MiniFloat(4, 3, bias=100),
    MiniFloat(6, 1),
    MiniFloat(1, 3),
    MiniFloat(3, 2, specials="none"),
    *(Microscaling(name) for name in ("mxint8", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4_e2m1")),
]
WIDE = [
    BlockFloatingPoint(8),
    BlockFloatingPoint(8, Per(0)),
    BlockFloatingPoint(16),
    BlockFloatingPoint(9, 7),
    FixedPoint(16, 3),
    FixedPoint(10, 126),
    MiniFloat(8, 7),
    MiniFloat(8, 1),
    MiniFloat(5, 10),
]
SIZES = [1, 3, 31, 64, 65, 1000, 4097]


@pytest.mark.parametrize("fmt", [*BLOCKS[::4], *OTHERS, *WIDE], ids=repr)
def test_rounded_values_and_codes_equal_the_reference_bit_for_bit(fmt):
    generator = torch.Generator().manual_seed(5)
    grid, scale, block = fmt.codec
    for spread, mantissa_bits in itertools.product((None, 0, 2, 20, 60), (0, 4, 23)):
        x = random_bits(3 * 701, generator, spread, mantissa_bits).view(3, 701)
        x[0, :40], x[1, ::3] = 0.0, -0.0
        blocks = tiling(block, (3, 701))
        for random in (None, key(0, fmt.__class__.__name__, spread or 0)):
            slow_codes, scales = fmt._encode(blocks, x, random)
            slow, fast = blocks.join(fmt._values(slow_codes, scales), (3, 701)), torch.full_like(x, 7.0)
            assert kernels.quantize(grid, scale, blocks, x, random, fast)
            assert torch.equal(fast.view(torch.int32), slow.contiguous().view(torch.int32))
            if grid.bits <= 8:
                codes = torch.zeros(x.numel(), dtype=torch.uint8)
                exponents = torch.zeros(0 if scale.constant else blocks.blocks, dtype=torch.int8)
                assert kernels.codes(grid, scale, blocks, x, random, codes, exponents)
                assert torch.equal(codes, blocks.join(slow_codes, (3, 701)).reshape(-1).to(torch.uint8))
                assert torch.equal(scale.to_bytes(exponents), scales)


@pytest.mark.parametrize("fmt", [*BLOCKS, *OTHERS], ids=repr)
def test_encoded_bytes_equal_the_reference_bit_for_bit(fmt):
    generator = torch.Generator().manual_seed(3)
    grid, scale, _ = fmt.codec
    for size in SIZES:
        for spread, mantissa_bits in itertools.product((None, 0, 6), (0, 4, 23)):
            x = random_bits(size, generator, spread, mantissa_bits)
            if size == 1000:
                x[::7], x[64:200] = -0.0, 0.0
            fast = torch.full((fmt.row_bytes(size),), 0x5A, dtype=torch.uint8)
            slow = torch.full((fmt.row_bytes(size),), 0xA5, dtype=torch.uint8)
            row_kernels.encode(grid, scale, fmt.columns, x, fast)
            rows.encode(grid, scale, fmt.columns, x, slow)
            assert torch.equal(fast, slow)


@pytest.mark.parametrize("fmt", [*BLOCKS, *OTHERS], ids=repr)
def test_decoded_floats_equal_the_reference_bit_for_bit(fmt):
    generator = torch.Generator().manual_seed(4)
    grid, scale, _ = fmt.codec
    for size in SIZES:
        raw = torch.randint(0, 256, (3, fmt.row_bytes(size)), generator=generator, dtype=torch.uint8)  # any exponent
        fast, slow = torch.full((3, size), 1.0), torch.full((3, size), 2.0)
        row_kernels.decode(grid, scale, fmt.columns, raw, fast)
        rows.decode(grid, scale, fmt.columns, raw, slow)
        assert torch.equal(fast.nan_to_num(7.0).view(torch.int32), slow.nan_to_num(7.0).view(torch.int32))
        assert torch.equal(fast.isnan(), slow.isnan())


def test_rows_longer_than_a_piece_decode_alike():
    fmt, size = format_of("bfp8"), 3 * rows.PIECE // 2 + 17
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    raw = torch.empty(fmt.row_bytes(size), dtype=torch.uint8)
    row_kernels.encode(*fmt.codec[:2], 64, x, raw)
    out = torch.empty(1, size)
    rows.decode(*fmt.codec[:2], 64, raw[None], out)
    assert torch.equal(out[0], fmt.quantize(x))


@pytest.mark.parametrize("fmt", [BlockFloatingPoint(8, Per(0)), BlockFloatingPoint(5, 7), *OTHERS], ids=repr)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 10), (2, 3, 65), (4100,)])
def test_packed_bytes_equal_the_reference_bit_for_bit(fmt, shape, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    fast = fmt.pack(x)
    monkeypatch.setattr("weightbank.formats.coded.available", lambda: False)
    monkeypatch.setattr("weightbank.formats.coded.imported", lambda: False)
    slow = fmt.pack(x)
    assert torch.equal(fast.codes, slow.codes)
    assert torch.equal(fast.scales, slow.scales)
    unpacked = slow.unpack()
    monkeypatch.undo()
    assert torch.equal(fast.unpack().view(torch.int32), unpacked.view(torch.int32))


@pytest.mark.parametrize("bits", range(2, 17))
def test_codes_without_padding_are_one_number_in_base_two(bits):
    generator = torch.Generator().manual_seed(bits)
    code = torch.randint(0, 1 << bits, (3, 2 * group(bits)), generator=generator, dtype=torch.int32)
    packed = pack_codes(code, bits)
    for line, row in zip(packed, code, strict=True):
        number = sum(int(value) << (bits * place) for place, value in enumerate(row))
        assert bytes(line.tolist()) == number.to_bytes(len(line), "little")
    assert torch.equal(unpack_codes(packed, bits, signed=False), code)
    signed = torch.where(code >> (bits - 1) > 0, code - (1 << bits), code)
    assert torch.equal(unpack_codes(packed, bits, signed=True), signed)


def test_subnormals_and_the_largest_floats_survive_the_loops():
    most, fmt = torch.finfo(torch.float32).max, BlockFloatingPoint(8, block=2)
    x = torch.tensor([most, -most, 2.0**-127, -(2.0**-127), 2.0**-134, 2.0**-149])
    raw, out = torch.empty(fmt.row_bytes(6), dtype=torch.uint8), torch.empty(1, 6)
    row_kernels.encode(*fmt.codec[:2], 2, x, raw)
    row_kernels.decode(*fmt.codec[:2], 2, raw[None], out)
    top = 127 * 2.0**121
    assert out[0].tolist() == [top, -top, 2.0**-127, -(2.0**-127), 2.0**-134, 0.0]


def test_loops_let_go_of_the_interpreter_lock():
    loops = [kernels._quantize_whole, kernels._quantize_small, kernels._codes_whole, kernels._codes_small]
    loops += [row_kernels._encode8, row_kernels._encode4, row_kernels._lay_down, row_kernels._squeeze]
    loops += [row_kernels._decode8, row_kernels._decode4, row_kernels._decode, row_kernels._unpack]
    for loop in loops:
        assert loop.targetoptions["nogil"]


@pytest.mark.parametrize(
    "work",
    [
        "import weightbank.formats",
        "import torch; from weightbank.formats import format_of\n"
        "for name in 'bfp8 bfp4 bfp6 mxfp4_e2m1 fp8_e4m3'.split():\n"
        "    fmt = format_of(name)\n"
        "    fmt.decode_rows(torch.zeros(2, fmt.row_bytes(100), dtype=torch.uint8), torch.empty(2, 100))",
    ],
    ids=["import", "decode"],
)
def test_reading_does_not_import_numba(work):
    code = f"{work}\nimport sys; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_loops_take_what_they_can(monkeypatch):
    taken = []
    quantize = kernels.quantize
    monkeypatch.setattr(kernels, "quantize", lambda *all: taken.append(all) or quantize(*all))
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    for fmt in (
        BlockFloatingPoint(8),
        BlockFloatingPoint(8, Per(0, 1)),
        BlockFloatingPoint(8, 4),
        format_of("fp8_e4m3"),
    ):
        taken.clear()
        fmt.quantize(x)
        fmt.quantize(x, out=x)
        assert len(taken) == 2
        fmt.quantize(x.double())
        fmt.quantize(x.transpose(0, 1))
        fmt.quantize(x[:0])
        fmt.quantize(x, out=torch.empty(4, 5, 6).transpose(1, 2))
        assert len(taken) == 2
    assert isinstance(fmt, Coded)
    assert not isinstance(Native("float32"), Coded)


def test_a_result_may_overlap_its_input():
    memory = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    for fmt in (BlockFloatingPoint(8), BlockFloatingPoint(8, 64), format_of("fp8_e4m3")):
        shared = memory.clone()
        want = fmt.quantize(memory[:-1])
        assert torch.equal(fmt.quantize(shared[:-1], out=shared[1:]), want)


def test_autograd_sees_that_a_saved_tensor_was_rounded_in_place():
    weight = torch.randn(8, requires_grad=True)
    loss = (weight * weight).sum()
    with torch.no_grad():
        BlockFloatingPoint(8).quantize(weight, out=weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_not_a_number_is_refused_by_the_loops_with_its_place():
    for fmt in (BlockFloatingPoint(8, 64), FixedPoint(8, 6), format_of("fp8_e4m3"), format_of("mxfp4_e2m1")):
        for bad in (torch.nan, torch.inf, -torch.inf):
            x = torch.zeros(5000)
            x[4321] = bad
            out = x.clone()
            for call in (lambda: fmt.quantize(x), lambda: fmt.pack(x), lambda: fmt.quantize(out, out=out)):  # noqa: B023
                with pytest.raises(ValueError, match="entry 4321 of 5000"):
                    call()

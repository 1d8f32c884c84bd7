"""The row interface, the same facts for every format which has one."""

import sys
import threading

import pytest
import torch
from format_oracles import vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from weightbank.errors import FormatError, NonFiniteError
from weightbank.formats import BlockFloatingPoint, FixedPoint, Format, Microscaling, MiniFloat, Native, Tile, coded

FORMATS = [
    Native("float32"),
    Native("bfloat16"),
    Native("float16"),
    BlockFloatingPoint(8, block=64),
    BlockFloatingPoint(8, block=1),
    BlockFloatingPoint(8, block=16, exponent_bits=5, codes="symmetric"),
    BlockFloatingPoint(4, block=32),
    BlockFloatingPoint(4, block=2),
    BlockFloatingPoint(6, block=32),
    BlockFloatingPoint(6, block=4),
    BlockFloatingPoint(5, block=16),
    BlockFloatingPoint(3, block=8),
    BlockFloatingPoint(12, block=Tile(0, 16)),
    FixedPoint(8, 6),
    FixedPoint(5, 2),
    FixedPoint(16, 12),
    MiniFloat(4, 3, specials="nan"),
    MiniFloat(3, 2, specials="none"),
    Microscaling("mxint8"),
    Microscaling("mxfp8_e5m2"),
    Microscaling("mxfp6_e2m3"),
    Microscaling("mxfp4_e2m1"),
]
TILED = [fmt for fmt in FORMATS if not isinstance(fmt, Native)]
SIZES = [0, 1, 31, 32, 33, 65, 200, 1000]


@pytest.fixture(params=[True, False], ids=["numba", "torch"], autouse=True)
def numba(request, monkeypatch):
    if request.param:
        pytest.importorskip("numba")
    monkeypatch.setattr(coded, "available", lambda: request.param)
    monkeypatch.setattr(coded, "imported", lambda: request.param)


def encoded(fmt: Format, x: torch.Tensor) -> torch.Tensor:
    raw = torch.full((fmt.row_bytes(x.numel()),), 0xA5, dtype=torch.uint8)
    fmt.encode_row(x, raw)
    return raw


def gaussian(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
@pytest.mark.parametrize("size", SIZES)
def test_decoded_row_is_the_quantized_vector(fmt, size):
    x = gaussian(size)
    out = torch.full((1, size), torch.nan)
    fmt.decode_rows(encoded(fmt, x)[None], out)
    assert torch.equal(out[0], fmt.quantize(x))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_any_span_of_columns_decodes_alone(fmt):
    size = 200
    rows = torch.stack([gaussian(size, seed) for seed in range(3)])
    raw = torch.stack([encoded(fmt, row) for row in rows])
    want = torch.stack([fmt.quantize(row) for row in rows])
    step = max(fmt.columns, 32)
    for start in range(0, size, step):
        for stop in {start + fmt.columns, *range(start + step, size, 2 * step), size}:
            stop = min(stop, size)
            offset, length = fmt.span(start, stop)
            out = torch.full((3, stop - start), torch.nan)
            fmt.decode_rows(raw[:, offset : offset + length], out)
            assert torch.equal(out, want[:, start:stop])


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_spans_partition_the_row(fmt):
    size, middle = 1000, 512
    first, second = fmt.span(0, middle), fmt.span(middle, size)
    assert (first[0], first[0] + first[1]) == (0, second[0])
    assert second[0] + second[1] == fmt.row_bytes(size)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_strided_rows_decode_and_leave_the_gaps_alone(fmt):
    size, stride = 130, 4096
    disk = torch.full((3, stride), 0xFF, dtype=torch.uint8)
    rows = torch.stack([gaussian(size, seed) for seed in range(3)])
    for line, row in zip(disk, rows, strict=True):
        fmt.encode_row(row, line[: fmt.row_bytes(size)])
    assert (disk[:, fmt.row_bytes(size) :] == 0xFF).all()
    out = torch.full((3, 200), 7.0)
    fmt.decode_rows(disk[:, : fmt.row_bytes(size)], out[:, 10 : 10 + size])
    assert torch.equal(out[:, 10 : 10 + size], torch.stack([fmt.quantize(row) for row in rows]))
    assert (out[:, :10] == 7).all()
    assert (out[:, 10 + size :] == 7).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_bytes_at_an_odd_address_are_read_and_written(fmt):
    x = gaussian(100)
    size = fmt.row_bytes(100)
    buffer = torch.zeros(3, size + 4, dtype=torch.uint8)
    fmt.encode_row(x, buffer[1, 1 : size + 1])
    assert torch.equal(buffer[1, 1 : size + 1], encoded(fmt, x))
    out = torch.empty(1, 100)
    fmt.decode_rows(buffer[1:2, 1 : size + 1], out)
    assert torch.equal(out[0], fmt.quantize(x))


@settings(deadline=None, max_examples=60)
@given(vectors(), st.sampled_from(TILED))
def test_rows_of_any_finite_bits_decode_to_the_quantized_vector(x, fmt):
    out = torch.full((1, x.numel()), torch.nan)
    fmt.decode_rows(encoded(fmt, x)[None], out)
    assert torch.equal(out[0], fmt.quantize(x))


def test_eight_bit_tile_is_codes_then_exponent():
    raw = encoded(BlockFloatingPoint(8, block=8), torch.tensor([1.999, -1.999, -1.0, 1.0, 0.0]) / 4)
    assert bytes(raw.tolist()) == bytes.fromhex("7f80c04000000000 fe")


def test_four_bit_tile_holds_the_lower_index_in_the_low_nibble():
    raw = encoded(BlockFloatingPoint(4, block=4), torch.tensor([1.999, -1.999, -1.0, 1.0, 8.0]))
    assert bytes(raw.tolist()) == bytes.fromhex("874c 00  0400 03")


def test_native_rows_are_little_endian_words():
    x = torch.tensor([1.0, -2.0])
    assert bytes(encoded(Native("float32"), x).tolist()) == bytes.fromhex("0000803f 000000c0")
    assert bytes(encoded(Native("bfloat16"), x).tolist()) == bytes.fromhex("803f 00c0")
    assert bytes(encoded(Native("float16"), x).tolist()) == bytes.fromhex("003c 00c0")


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_with_a_nan_or_an_infinity_is_refused_with_its_place(fmt, bad):
    for size, place in ((200, 77), (200, 199), (130, 129)):
        x = gaussian(size)
        x[place] = bad
        with pytest.raises(NonFiniteError, match=f"entry {place} of {size}"):
            encoded(fmt, x)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_buffers_of_the_wrong_size_or_type_are_refused(fmt):
    x, size = gaussian(100), fmt.row_bytes(100)
    for out in (torch.zeros(size - 1, dtype=torch.uint8), torch.zeros(2 * size, dtype=torch.uint8)[::2]):
        with pytest.raises(FormatError, match="contiguous bytes"):
            fmt.encode_row(x, out)
    with pytest.raises(FormatError, match="contiguous float32 vector"):
        fmt.encode_row(x.double(), torch.zeros(size, dtype=torch.uint8))
    raw = torch.zeros(2, size, dtype=torch.uint8)
    for bad in (raw[:, 1:], torch.zeros(2, 2 * size, dtype=torch.uint8)[:, ::2]):
        with pytest.raises(FormatError, match="contiguous bytes"):
            fmt.decode_rows(bad, torch.empty(2, 100))
    with pytest.raises(FormatError, match="contiguous in W"):
        fmt.decode_rows(raw, torch.empty(2, 200)[:, ::2])
    with pytest.raises(FormatError, match="float32"):
        fmt.decode_rows(raw, torch.empty(2, 100, dtype=torch.float64))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_spans_which_are_none_are_refused(fmt):
    for start, stop in ((64, 0), (-64, 64), (fmt.columns + 1, 4 * fmt.columns) if fmt.columns > 1 else (-1, 0)):
        with pytest.raises(FormatError, match="are not a span"):
            fmt.span(start, stop)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_no_rows_decode_to_nothing(fmt):
    fmt.decode_rows(torch.zeros(0, fmt.row_bytes(100), dtype=torch.uint8), torch.empty(0, 100))
    fmt.decode_rows(torch.zeros(3, 0, dtype=torch.uint8), torch.empty(3, 0))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_every_format_is_a_format(fmt):
    assert isinstance(fmt, Format)


def test_a_row_can_be_encoded_on_a_thread_of_its_own():
    fmt, x, results = BlockFloatingPoint(8, block=64), gaussian(1000), []
    threads = [threading.Thread(target=lambda: results.append(encoded(fmt, x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(raw, results[0]) for raw in results)


def test_rows_of_the_interpreter_are_little_endian():
    assert sys.byteorder == "little"

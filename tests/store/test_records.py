import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from weightbank.errors import CorruptError
from weightbank.store import RowLog
from weightbank.store.memory import ArrayBlob
from weightbank.store.records import GONE, ITERATE, RECORD_BYTES, SKETCH, Journal, Record
from weightbank.store.segments import Geometry


def blob_of(data: bytes) -> ArrayBlob:
    return ArrayBlob("commits.bin", np.frombuffer(data, np.uint8).copy())


def records(count: int, slots: int | None = None) -> list[Record]:
    return [Record(n, 10 * n - 3, n if slots is None else n % slots, 7 * n + 1, n % 2, n // 3) for n in range(count)]


def packed(count: int, slots: int | None = None) -> bytes:
    return b"".join(record.pack() for record in records(count, slots))


def test_record_is_these_64_bytes() -> None:
    body = (
        b"WBRC"
        b"\x01\x00"  # version
        b"\x01\x00"  # kind: a row of a sketch
        b"\x05\x00\x00\x00\x00\x00\x00\x00"  # sequence
        b"\xfe\xff\xff\xff\xff\xff\xff\xff"  # step -2
        b"\x06\x00\x00\x00\x00\x00\x00\x00"  # slot
        b"\x07\x00\x00\x00\x00\x00\x00\x00"  # generation
        b"\xef\xbe\xad\xde" + bytes(16)
    )
    record = Record(sequence=5, step=-2, slot=6, row_crc=0xDEADBEEF, kind=SKETCH, generation=7)
    assert record.pack() == body + zlib.crc32(body).to_bytes(4, "little")
    assert Record.unpack(record.pack()) == record


def test_any_flipped_bit_makes_it_no_record() -> None:
    data = records(5)[4].pack()
    for bit in range(8 * RECORD_BYTES):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert Record.unpack(bytes(damaged)) is None
    assert Record.unpack(data[:-1]) is None
    assert Record.unpack(bytes(RECORD_BYTES)) is None


def test_record_of_a_later_version_says_so() -> None:
    body = b"WBRC\x02" + records(1)[0].pack()[5:-4]
    with pytest.raises(CorruptError, match="version 2 came; this library reads version 1"):
        Record.unpack(body + zlib.crc32(body).to_bytes(4, "little"))


@pytest.mark.parametrize("slots", [None, 7])
@pytest.mark.parametrize("count", [0, 1, 100, 20_000])  # read in pieces of 16,384
def test_journal_reads_records_and_goes_on_where_it_was(count: int, slots: int | None) -> None:
    journal = Journal()
    for known in (0, count // 3, count):
        journal.scan(blob_of(packed(known, slots) + bytes(1000)), slots)
        assert journal.count == known
    expected = records(count, slots)
    assert journal.steps.tolist() == [record.step for record in expected]
    assert journal.kinds.tolist() == [record.kind for record in expected]
    assert journal.generations.tolist() == [record.generation for record in expected]
    assert journal.crcs.tolist() == [record.row_crc for record in expected]


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xff" * RECORD_BYTES,
        Record(6, 0, 6, 0).pack(),  # the one after
        Record(4, 0, 4, 0).pack(),  # the one before
        Record(5, 0, 4, 0).pack(),  # another place
    ],
)
def test_journal_ends_before_the_first_record_that_is_not_the_next(wrong: bytes) -> None:
    data = bytearray(packed(12))
    data[5 * RECORD_BYTES : 6 * RECORD_BYTES] = wrong
    journal = Journal()
    journal.scan(blob_of(bytes(data)), None)
    assert journal.count == 5
    assert journal.beyond(blob_of(bytes(data))) == (False, 12)


def test_what_lies_beyond_the_last_record() -> None:
    journal = Journal()
    journal.scan(blob_of(packed(5)), None)
    rest = {
        b"": (True, 5),
        bytes(100): (True, 5),
        bytes(RECORD_BYTES) + b"x": (True, 5),
        b"x": (False, 5),
        bytes(2 * RECORD_BYTES) + records(9)[7].pack(): (True, 8),
        bytes(RECORD_BYTES) + records(9)[7].pack(): (True, 5),  # not in its place
    }
    for more, expected in rest.items():
        assert journal.beyond(blob_of(packed(5) + more)) == expected


def test_journal_notices_that_the_log_was_written_anew() -> None:
    journal = Journal()
    assert journal.agrees(blob_of(b""))
    journal.scan(blob_of(packed(5)), None)
    assert journal.agrees(blob_of(packed(5)))
    assert journal.agrees(blob_of(packed(9)))
    assert not journal.agrees(blob_of(packed(4)))
    assert not journal.agrees(blob_of(packed(4) + bytes(RECORD_BYTES)))
    assert not journal.agrees(blob_of(packed(4) + Record(4, 37, 4, 99).pack()))


def test_rows_marked_as_gone_are_not_among_the_kept_ones() -> None:
    journal = Journal()
    journal.scan(blob_of(packed(10, 8)), 8)
    assert journal.first(6) == 4
    marked = list(journal.lose(4, 6))
    assert marked == [Record(n, 10 * n - 3, GONE, 7 * n + 1, n % 2, n // 3) for n in (4, 5)]
    assert journal.first(6) == 6
    again = Journal()
    data = packed(4, 8) + b"".join(record.pack() for record in marked) + packed(10, 8)[6 * RECORD_BYTES :]
    again.scan(blob_of(data), 8)
    assert (again.count, again.first(6), again.first(2), again.first(None)) == (10, 6, 8, 0)
    again.cut(5)
    assert again.first(6) == 5


def test_log_finds_each_row_at_the_place_that_the_format_gives_it(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(1500)  # 6,000 bytes in two pages
        for number in range(3):
            log.append(torch.full((1500,), float(number)), step=5 * number)
        log.set_reference(torch.arange(1500.0))
    rows, commits = ((tmp_path / "log" / name).read_bytes() for name in ("rows-000000.bin", "commits.bin"))
    for number in range(3):
        row = np.full(1500, number, "<f4").tobytes()
        assert rows[8192 * number : 8192 * number + 6000] == row
        record = Record(number, 5 * number, number, zlib.crc32(row), ITERATE, 0)
        assert commits[64 * number : 64 * number + 64] == record.pack()
    reference = np.arange(1500, dtype="<f4").tobytes()
    head = b"WBRF 1 1500 %08x\n" % zlib.crc32(reference)
    assert (tmp_path / "log" / "reference.bin").read_bytes() == head.ljust(64) + reference


def test_segments_hold_64_rows_or_16_mib_but_no_more_than_1_gib() -> None:
    expected = {100: 4096, 4096: 4096, 4097: 2048, 1 << 20: 64, 16 << 20: 64, 17 << 20: 60, 1 << 30: 1, 5 << 30: 1}
    for row_bytes, rows in expected.items():
        geometry = Geometry.of(row_bytes, None)
        assert geometry.segment_rows == rows
        assert geometry.plausible
    assert Geometry.of(100, 9).segment_rows == 9
    assert Geometry(4096, None, 4096 * 64).plausible
    assert not Geometry(4096, None, 4096 * 64 + 1).plausible


def test_rows_of_a_ring_lie_in_turn_in_segments_of_which_the_last_may_be_short() -> None:
    geometry = Geometry(100, 7, 3)
    assert [geometry.place(n) for n in (0, 2, 3, 6, 7, 13)] == [(0, 0), (0, 8192), (1, 0), (2, 0), (0, 0), (2, 0)]
    assert [geometry.segment_bytes(n) for n in range(3)] == [3 * 4096, 3 * 4096, 4096]
    assert geometry.payload(5) == 5 * 4096 + 5 * 64
    assert geometry.payload(50) == 7 * 4096 + 50 * 64

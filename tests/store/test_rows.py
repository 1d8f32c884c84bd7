import gc
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from weightbank.distributions import Moments
from weightbank.errors import (
    CorruptError,
    FormatError,
    LayoutError,
    LockedError,
    NonFiniteError,
    OverwrittenError,
    StoreError,
)
from weightbank.formats import BlockFloatingPoint, Format, Native
from weightbank.layout import Entry, Layout
from weightbank.store import RowLog, segments
from weightbank.store.media import Directory
from weightbank.store.memory import Memory
from weightbank.store.segments import Segments

FORMATS = [Native("float32"), Native("bfloat16"), BlockFloatingPoint(8, block=64), BlockFloatingPoint(4, block=32)]


def rows_of(count: int, size: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(count + size))


def wider(like: Tensor) -> Tensor:
    """A part of a wider tensor: contiguous only within its rows."""
    return torch.empty(len(like), like.shape[1] + 3)[:, : like.shape[1]]


def layout_of(size: int, name: str = "w") -> Layout:
    return Layout((Entry(name, (size,), 0, torch.float32),))


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows to a segment."""
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 4096)
    monkeypatch.setattr(segments, "_SEGMENT_ROWS", 3)


@pytest.fixture(params=["directory", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return tmp_path / "log" if request.param == "directory" else Memory()


# reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("keep", [None, 7], ids=["all", "ring"])
@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_any_rows_and_columns_equal_those_of_the_whole_matrix(where: Any, format: Format, keep: int | None) -> None:
    size, count = 64 * 5 + 13, 20
    rows = rows_of(count, size)
    whole = torch.stack([format.quantize(row) for row in rows])
    with RowLog(where, format=format) as log:
        log.create(size, keep=keep)
        for number, row in enumerate(rows):
            assert log.append(row) == number
        first = 0 if keep is None else count - keep
        assert (log.first, log.count, len(log)) == (first, count, count - first)
        tile = format.columns
        for start in range(first, count, 2):
            for stop in range(start, count + 1, 3):
                for step in (1, 2, 5):
                    chosen = range(start, stop, step)
                    for columns in (slice(0, size), slice(64, size), slice(128, 256), slice(tile, tile), slice(64, 90)):
                        expected = whole[start:stop:step, columns]
                        for out in (torch.empty(expected.shape), wider(expected)):
                            log.read(chosen, columns, out)
                            assert torch.equal(out, expected)
        for number in range(first, count):
            assert torch.equal(log.row(number), whole[number])
            assert log.checksum(rows[number]) == log.journal.crcs[number]
        assert log.damaged() == []


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_reopened_log_is_the_same(where: Any, format: Format) -> None:
    rows = rows_of(5, 100)
    with RowLog(where, format=format) as log:
        log.create(100, layout=layout_of(100), notes={"b": [1, None, "x"], "a": 2.5})
        log.set_reference(rows[0])
        for step, row in enumerate(rows[:3]):
            log.append(row, step=10 * step, kind=step % 2, generation=step)
    with RowLog(where) as log:
        assert log.append(rows[3], step=-7) == 3
        log.append(rows[4], step=2**63 - 1)
    with RowLog(where, read_only=True) as log:
        assert (log.format, log.size, log.count) == (format, 100, 5)
        assert log.manifest.layout == layout_of(100)
        assert log.manifest.notes == {"b": [1, None, "x"], "a": 2.5}
        assert log.steps == [0, 10, 20, -7, 2**63 - 1]
        assert log.journal.kinds.tolist() == [0, 1, 0, 0, 0]
        assert log.journal.generations.tolist() == [0, 1, 2, 0, 0]
        assert all(torch.equal(log.row(n), format.quantize(rows[n])) for n in range(5))
        reference = log.reference()
        assert reference is not None
        assert torch.equal(reference, rows[0])


@pytest.mark.parametrize("size", [100, 65_536, 150_001])
def test_row_made_in_place_equals_one_given(tmp_path: Path, size: int) -> None:
    (row,) = rows_of(1, size)
    with RowLog(tmp_path / "log") as log:
        log.create(size)
        assert log.direct
        log.append(row)
        log.append(None, prepare=lambda columns, out: out[columns].copy_(row[columns]))
        assert torch.equal(log.row(0), row)
        assert torch.equal(log.row(1), row)
        assert len(set(log.journal.crcs.tolist())) == 1


@pytest.mark.parametrize("format", ["bf16", "bfp8", "bfp4"])
def test_blocks_of_a_long_row_are_encoded_as_the_whole_is(tmp_path: Path, format: str) -> None:
    (row,) = rows_of(1, 150_001)
    with RowLog(tmp_path / "log", format=format) as log:
        log.create(150_001)
        log.append(row)
        assert torch.equal(log.row(0), log.format.quantize(row))
        whole = torch.empty(log.manifest.geometry.row_bytes, dtype=torch.uint8)
        log.format.encode_row(row, whole)
        assert log.journal.crcs[0] == crc32(whole.numpy())


def test_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log", format="bf16") as log:
        log.create(100)
        with pytest.raises(StoreError, match="no row came"):
            log.append(None, prepare=lambda columns, out: None)


def test_reader_sees_a_growing_prefix(tmp_path: Path) -> None:
    rows = rows_of(10, 100)
    with RowLog(tmp_path / "log") as log:
        log.create(100)
        with RowLog(tmp_path / "log", read_only=True) as reader:
            for number, row in enumerate(rows):
                assert reader.count == number
                log.append(row)
                log.flush()
                assert reader.count == number  # until it asks
                assert reader.refresh() == number + 1
                assert torch.equal(reader.row(number), row)


@pytest.mark.usefixtures("small_segments")
def test_reader_sees_that_the_log_was_truncated_and_written_anew(tmp_path: Path) -> None:
    rows = rows_of(10, 100)
    with RowLog(tmp_path / "log") as log:
        log.create(100)
        for row in rows:
            log.append(row)
        log.flush()
        with RowLog(tmp_path / "log", read_only=True) as reader:
            assert torch.equal(reader.row(9), rows[9])
            log.truncate(2)
            assert reader.refresh() == 2
            for row in rows.flip(0):
                log.append(row)
            log.flush()
            assert reader.refresh() == 12
            assert torch.equal(torch.stack([reader.row(n) for n in range(2, 12)]), rows.flip(0))


def test_reader_of_a_ring_is_told_when_its_rows_are_gone(where: Any) -> None:
    rows = rows_of(40, 100)
    with RowLog(where) as log:
        log.create(100, keep=6)
        for row in rows[:20]:
            log.append(row)
        log.flush()
        out = torch.empty(6, 100)
        log.read(range(14, 20), slice(0, 100), out)
        assert torch.equal(out, rows[14:20])
        for row in rows[20:]:
            log.append(row)
        with pytest.raises(OverwrittenError, match="row 14 has left the window of 6 rows .the newest is 39."):
            log.read(range(14, 20), slice(0, 100), out)
        with pytest.raises(OverwrittenError):
            log.row(19)


# what is refused ------------------------------------------------------------------------------------------------------


def test_rows_of_another_kind_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log", format="fp16") as log:
        log.create(100)
        for _ in range(6):  # more than there are staging slots
            with pytest.raises(LayoutError, match=r"shape \(99,\) came; this log has rows of \(100,\)"):
                log.append(torch.ones(99))
            with pytest.raises(NonFiniteError):
                log.append(torch.full((100,), torch.nan))
            with pytest.raises(FormatError):
                log.append(torch.full((100,), 1e30))
            with pytest.raises(StoreError, match="64 bits"):
                log.append(torch.ones(100), step=2**63)
            with pytest.raises(LayoutError):
                log.set_reference(torch.ones(99))
        assert log.count == 0
        log.append(torch.ones(100))
        assert (log.count, log.damaged()) == (1, [])


def test_questions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log", format=BlockFloatingPoint(8, block=64)) as log:
        log.create(200)
        log.append(torch.ones(200))
        everything = slice(0, 200)
        for rows in (range(2), range(-1, 1), range(0, -1, -1), range(1, 2)):
            with pytest.raises(StoreError, match="rows 0 to 0"):
                log.read(rows, everything, torch.empty(len(rows), 200))
        with pytest.raises(FormatError, match="multiple of 64"):
            log.read(range(1), slice(3, 200), torch.empty(1, 197))
        for columns, out in [
            (everything, torch.empty(1, 199)),
            (everything, torch.empty(2, 200)),
            (everything, torch.empty(1, 200, dtype=torch.float64)),
            (slice(0, 200, 2), torch.empty(1, 100)),
        ]:
            with pytest.raises(LayoutError, match="wanted every column"):
                log.read(range(1), columns, out)
        with pytest.raises(StoreError, match="0 or more"):
            log.truncate(-1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 101}, LayoutError, "holds rows of 100 weights; 101 came"),
        ({"layout": layout_of(100, "v")}, LayoutError, "another model"),
        ({"keep": 5}, StoreError, "created to keep all rows; the newest 5 rows asked for"),
    ],
)
def test_log_of_other_rows_is_refused(where: Any, change: dict[str, Any], error: type, message: str) -> None:
    asked: dict[str, Any] = {"size": 100, "layout": layout_of(100), "keep": None}
    with RowLog(where) as log:
        log.create(**asked)
        log.create(**asked)  # the same again is fine
    with RowLog(where) as log, pytest.raises(error, match=message):
        log.create(**{**asked, **change})


def test_other_format_is_refused(where: Any) -> None:
    with RowLog(where, format="bf16") as log:
        log.create(100)
    with pytest.raises(StoreError, match="holds rows in Native.'bfloat16'.; Native.'float32'. asked for"):
        RowLog(where, format="fp32")
    RowLog(where, format="bf16").close()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"size": 0}, StoreError),
        ({"size": 2**48}, StoreError),
        ({"size": 10, "keep": 0}, StoreError),
        ({"size": 10, "layout": layout_of(11)}, LayoutError),
        ({"size": 10, "notes": {"a": {1, 2}}}, StoreError),
        ({"size": 10, "notes": "x" * (17 << 20)}, StoreError),
    ],
)
def test_impossible_log_is_not_created(tmp_path: Path, arguments: dict[str, Any], error: type) -> None:
    log = RowLog(tmp_path / "log")
    with pytest.raises(error):
        log.create(**arguments)
    assert not (tmp_path / "log").exists()
    assert not log.created
    log.create(10)
    log.close()


def test_format_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        RowLog(tmp_path / "log", format=BlockFloatingPoint(8)).create(10)


def test_notes_with_numbers_for_keys_can_be_read_again(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(10, notes={10: "a", 9: "b"})  # as numbers they are in another order than as text
    assert RowLog(tmp_path / "log", read_only=True).manifest.notes == {"10": "a", "9": "b"}


def test_closed_log_says_so(where: Any) -> None:
    log = RowLog(where)
    with pytest.raises(StoreError, match="nothing recorded yet"):
        log.append(torch.ones(10))
    log.create(10)
    log.append(torch.ones(10))
    log.close()
    log.close()
    assert (log.count, log.steps) == (1, [0])
    for use in (lambda: log.append(torch.ones(10)), lambda: log.row(0), lambda: log.truncate(0), log.damaged):
        with pytest.raises(StoreError, match="closed; open it again"):
            use()


def test_read_only_log_takes_no_rows(where: Any) -> None:
    with RowLog(where) as log:
        log.create(10)
        log.append(torch.ones(10))
    with RowLog(where, read_only=True) as log:
        for change in (
            lambda: log.append(torch.ones(10)),
            lambda: log.truncate(0),
            lambda: log.set_reference(torch.ones(10)),
        ):
            with pytest.raises(StoreError, match="opened read-only"):
                change()
        assert log.count == 1


def test_places_where_no_log_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="a file is in the way"):
        RowLog(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot make this directory: Not a directory"):
        RowLog(tmp_path / "file" / "log").create(10)
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreError, match="no rows here"):
            RowLog(path, read_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_rows_whose_manifest_is_gone_are_not_written_over(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(10)
        log.append(torch.ones(10))
    (tmp_path / "log" / "manifest.json").unlink()
    with pytest.raises(CorruptError, match="rows here but no manifest.json"):
        RowLog(tmp_path / "log").create(10)


# one writer -----------------------------------------------------------------------------------------------------------


def test_second_writer_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "log")
    log.create(10)
    with pytest.raises(LockedError, match="another writer has this log open"):
        RowLog(tmp_path / "log")
    log.close()
    RowLog(tmp_path / "log").close()


def test_of_two_that_create_a_log_the_second_takes_that_of_the_first(tmp_path: Path) -> None:
    first, second, third = (RowLog(tmp_path / "log") for _ in range(3))
    first.create(10)
    with pytest.raises(LockedError):
        second.create(10)
    first.append(torch.ones(10))
    first.close()
    second.create(10)
    assert second.count == 1
    second.close()
    with pytest.raises(LayoutError, match="rows of 10 weights; 11 came"):
        third.create(11)


def test_reader_that_shares_the_writers_medium_does_not_take_its_lock(tmp_path: Path) -> None:
    place = Directory(tmp_path / "log")
    with RowLog(place) as log:
        log.create(10)
        RowLog(place, read_only=True).close()
        with pytest.raises(LockedError):
            RowLog(tmp_path / "log")


def test_forked_child_neither_writes_nor_holds_the_lock(tmp_path: Path) -> None:
    """Such as the worker of a data loader, which may outlive the log."""
    log = RowLog(tmp_path / "log")
    log.create(10)
    log.append(torch.ones(10))
    log.flush()
    (hear, tell), (go, let) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: log.append(torch.ones(10)), lambda: log.row(0), lambda: log.truncate(0), log.flush):
            try:
                use()
            except StoreError as error:
                refused += "forked" in str(error)
        os.write(tell, bytes([refused]))
        os.read(go, 1)
        log.close()  # as the garbage collector or the end of the program may
        os.write(tell, b"x")
        os._exit(0)
    try:
        assert os.read(hear, 1) == b"\x04"
        assert (tmp_path / "log" / "staging.bin").exists()
        log.append(2 * torch.ones(10))
        log.close()
        with RowLog(tmp_path / "log") as again:  # while the child lives
            again.append(3 * torch.ones(10))
            os.write(let, b"x")
            assert os.read(hear, 1) == b"x"
            again.append(4 * torch.ones(10))
            assert (tmp_path / "log" / "staging.bin").exists()
            with pytest.raises(LockedError):
                RowLog(tmp_path / "log")
    finally:
        os.kill(child, signal.SIGKILL)  # had something failed above, it would wait for ever
        os.waitpid(child, 0)
        for descriptor in (hear, tell, go, let):
            os.close(descriptor)
    with RowLog(tmp_path / "log") as again:
        assert [int(again.row(number)[0]) for number in range(again.count)] == [1, 2, 3, 4]


# ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "commit", "none"])
def test_dropped_log_keeps_its_rows_and_frees_the_lock(tmp_path: Path, durability: Any) -> None:
    log = RowLog(tmp_path / "log", durability=durability)
    log.create(10)
    for number in range(20):
        log.append(torch.full((10,), float(number)))
    del log
    gc.collect()
    assert not (tmp_path / "log" / "staging.bin").exists()
    with RowLog(tmp_path / "log") as again:
        assert [again.row(number)[0] for number in range(20)] == list(range(20))


def test_log_dropped_within_its_own_writer_thread_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, dropped, store = [RowLog(tmp_path / "log")], threading.Event(), Segments.store
    holder[0].create(10)

    def store_and_drop(self: Segments, *arguments: Any) -> None:
        assert dropped.wait(10)
        holder.clear()  # the last reference: as when the garbage collector happens to run here
        gc.collect()
        store(self, *arguments)

    monkeypatch.setattr(Segments, "store", store_and_drop)
    for number in range(3):
        holder[0].append(torch.full((10,), float(number)))
    threads = [thread for thread in threading.enumerate() if thread.name == "weightbank-writer"]
    gc.collect()
    dropped.set()
    deadline = time.monotonic() + 10
    while holder or any(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.undo()
    assert not (tmp_path / "log" / "staging.bin").exists()
    with RowLog(tmp_path / "log") as log:
        assert (log.count, log.damaged()) == (3, [])


def test_close_gives_back_preallocated_space(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "log")
    log.create(1000)
    for _ in range(3):
        log.append(torch.ones(1000))
    assert log.nbytes > 16 << 20
    log.close()
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "log").iterdir()}
    del sizes["manifest.json"]
    assert sizes == {"rows-000000.bin": 3 * 4096, "commits.bin": 3 * 64, "lock": 0}


def test_opening_takes_no_space(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(1000)
        log.append(torch.ones(1000))
    before = {file.name: file.stat().st_size for file in (tmp_path / "log").iterdir()}
    with RowLog(tmp_path / "log") as log:
        assert {file.name: file.stat().st_size for file in (tmp_path / "log").iterdir()} == before
        assert log.row(0).sum() == 1000


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_more_segments_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 4096)
    monkeypatch.setattr(segments, "_SEGMENT_ROWS", 1)
    monkeypatch.setattr(segments, "_OPEN_FILES", 5)
    with RowLog(tmp_path / "log", durability="commit", group=20) as log:
        log.create(10)
        before = open_files()
        for number in range(50):
            log.append(torch.full((10,), float(number)))
        log.flush()
        out = torch.empty(50, 10)
        log.read(range(50), slice(0, 10), out)
        assert out[:, 0].tolist() == list(range(50))
        assert open_files() <= before + 5 + 1  # and one that is about to close


# truncation -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 10, 11])
def test_truncated_log_goes_on_in_the_same_places(where: Any, count: int) -> None:
    rows = rows_of(20, 100)
    with RowLog(where) as log:
        log.create(100)
        for row in rows[:11]:
            log.append(row)
        log.truncate(count)
        assert (log.count, log.steps) == (count, list(range(count)))
        for row in rows[11:]:
            log.append(row)
        expected = torch.cat([rows[:count], rows[11:]])
        assert torch.equal(torch.stack([log.row(n) for n in range(log.count)]), expected)
    with RowLog(where) as log:
        assert torch.equal(torch.stack([log.row(n) for n in range(log.count)]), expected)
        if isinstance(where, Path):
            assert (
                sum((where / f"rows-{n:06d}.bin").stat().st_size for n in range(-(-log.count // 3))) == log.count * 4096
            )


@pytest.mark.usefixtures("small_segments")
def test_truncation_gives_back_whole_segments(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(100)
        for row in rows_of(12, 100):
            log.append(row)
        log.truncate(4)
        assert sorted(file.name for file in (tmp_path / "log").glob("rows*")) == ["rows-000000.bin", "rows-000001.bin"]


def test_truncated_rows_do_not_come_back_from_the_staging_slots_of_a_killed_writer(tmp_path: Path) -> None:
    rows = rows_of(10, 100)
    with RowLog(tmp_path / "log") as log:
        log.create(100)
        for row in rows:
            log.append(row)
        log.truncate(6)
        shutil.copytree(tmp_path / "log", tmp_path / "killed before")
        log.append(rows[0])
        log.flush()
        shutil.copytree(tmp_path / "log", tmp_path / "killed after")
    assert RowLog(tmp_path / "killed before").count == 6
    with RowLog(tmp_path / "killed after") as log:
        assert log.count == 7
        assert torch.equal(log.row(6), rows[0])


def test_truncated_ring_keeps_what_was_not_overwritten(where: Any) -> None:
    rows = rows_of(30, 100)
    with RowLog(where) as log:
        log.create(100, keep=10)  # 15 places: of 30 rows, 15 to 29 are there
        for row in rows:
            log.append(row)
        log.truncate(22)
        assert (log.first, log.count) == (15, 22)
        with pytest.raises(OverwrittenError):
            log.row(14)
        assert all(torch.equal(log.row(n), rows[n]) for n in range(15, 22))
    with RowLog(where) as log:
        assert (log.first, log.count, log.damaged()) == (15, 22, [])
        log.append(rows[22])
        assert log.first == 15
        for row in rows[23:]:
            log.append(row)
        assert (log.first, log.damaged()) == (20, [])
        assert all(torch.equal(log.row(n), rows[n]) for n in range(20, 30))
        with pytest.raises(OverwrittenError, match="the rows before row 15 have left the window of 10 rows"):
            log.truncate(15)
        assert log.count == 30
        log.truncate(0)
        assert (log.first, log.count, len(log)) == (0, 0, 0)
        log.append(rows[0])
        assert torch.equal(log.row(0), rows[0])


@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_rewound_moments_equal_those_of_the_first_iterates(where: Any, count: int) -> None:
    thetas = rows_of(12, 100)
    moments, expected = Moments(layout_of(100), rows=RowLog(where)), Moments(layout_of(100))
    for number, theta in enumerate(thetas[:9]):
        moments.update(theta)
        if number % 3 == 0:
            moments.flush()  # saves the moments of 1, 4 and 7 iterates
    moments.rewind(count)
    for theta in thetas[:count]:
        expected.update(theta)
    for theta in (None, *thetas[9:]):
        if theta is not None:
            moments.update(theta)
            expected.update(theta)
        if expected.count:
            assert torch.equal(moments.mean(), expected.mean())
            assert torch.equal(moments.variance(), expected.variance())
    moments.close()
    again = Moments(layout_of(100), rows=RowLog(where, read_only=True))
    assert again.count == count + 3
    assert torch.equal(again.variance(), expected.variance())

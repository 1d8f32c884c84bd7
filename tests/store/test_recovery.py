"""Opening what a kill, a power cut, damage or a stranger has left: the last committed state, or an error of ours."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from killing import Children, Tell
from weightbank.distributions import Moments
from weightbank.errors import CorruptError, StoreError, WeightbankError
from weightbank.formats import Native
from weightbank.layout import Entry, Layout
from weightbank.store import RowLog, recovery
from weightbank.store.manifest import Manifest
from weightbank.store.records import RECORD_BYTES, Record
from weightbank.store.segments import Geometry, Segments

P, K = 1000, 12
LAYOUT = Layout((Entry("w", (P,), 0, torch.float32),))


def iterates(count: int = K) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(P, generator=generator) for _ in range(count)]


def record(where: Path, count: int = K) -> None:
    """A closed log of `count` iterates with all its files, both slots of moments among them."""
    moments = Moments(LAYOUT, rows=RowLog(where))
    for theta in iterates(count):
        moments.update(theta)
        moments.flush()
    moments.close()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("closed") / "log"
    record(where)
    return where


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a kill leaves it: 12 rows acknowledged, 9 of them stored, 3 in their staging slots."""
    where, copy = tmp_path_factory.mktemp("killed") / "log", tmp_path_factory.mktemp("killed") / "copy"
    moments = Moments(LAYOUT, rows=RowLog(where))
    thetas = iterates()
    for theta in thetas[:9]:
        moments.update(theta)
        moments.flush()
    stuck, store = threading.Event(), Segments.store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segments, "store", lambda self, record, row: (stuck.wait(), store(self, record, row)))
        for theta in thetas[9:]:
            moments.update(theta)
        shutil.copytree(where, copy)
        stuck.set()
        moments.close()
    return copy


@pytest.fixture
def log(closed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(closed, tmp_path / "log")


@pytest.fixture
def stopped(killed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(killed, tmp_path / "log")


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with open(file, "r+b") as opened:
        opened.seek(offset)
        opened.write(data)


def flip(file: Path, offset: int) -> None:
    overwrite(file, offset, bytes([file.read_bytes()[offset] ^ 0x10]))


# after a kill ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [True, False])
def test_rows_left_in_staging_slots_are_stored_by_the_next_to_open(stopped: Path, read_only: bool) -> None:
    with RowLog(stopped, read_only=read_only) as log:
        assert log.count == K
        assert all(torch.equal(log.row(n), iterates()[n] - iterates()[0]) for n in range(K))
        assert read_only or log.damaged() == []
    assert not (stopped / "staging.bin").exists()


def test_killed_recovery_is_done_again(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Segments) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Segments, "sync", die)  # after the rows were stored, before the staging file is removed
        with pytest.raises(KeyboardInterrupt):
            RowLog(stopped)
    with RowLog(stopped) as log:
        assert (log.count, log.damaged()) == (K, [])


def test_unfinished_row_in_a_staging_slot_is_not_taken(stopped: Path) -> None:
    for slot in range(4):
        flip(stopped / "staging.bin", slot * 8192 + 4096 + 77)
    with RowLog(stopped) as log:
        assert (log.count, log.damaged()) == (9, [])


def test_reader_leaves_the_staging_of_a_living_writer_alone(tmp_path: Path) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(P)
        for theta in iterates():
            log.append(theta)
        log.flush()
        with RowLog(tmp_path / "log", read_only=True) as reader:
            assert reader.count == K
        assert (tmp_path / "log" / "staging.bin").exists()


def test_writer_waits_for_a_reader_that_finishes_what_was_left(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()
    recover = recovery.recover_staged

    def slowly(*arguments: object) -> None:
        inside.set()
        go.wait(10)
        recover(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "recover_staged", slowly)
    reader = threading.Thread(target=lambda: RowLog(stopped, read_only=True).close())
    reader.start()
    inside.wait(10)
    threading.Timer(0.15, go.set).start()
    with RowLog(stopped) as log:
        assert log.count == K
    reader.join()


# after a power cut: a log that was not closed may have lost some of its newest rows ---------------------------------


def test_torn_newest_rows_of_an_unclosed_log_are_dropped(stopped: Path) -> None:
    overwrite(stopped / "rows-000000.bin", 7 * 4096, bytes(2048))
    (stopped / "staging.bin").unlink()
    with RowLog(stopped, read_only=True) as log:
        assert log.count == log.refresh() == 7
    with RowLog(stopped) as log:
        assert (log.count, log.damaged()) == (7, [])
        log.append(iterates()[3])
    with RowLog(stopped) as log:
        assert log.count == 8
        assert torch.equal(log.row(7), iterates()[3])


def test_lost_page_of_records_of_an_unclosed_log_ends_it_and_what_lay_behind_does_not_come_back(stopped: Path) -> None:
    (stopped / "staging.bin").unlink()
    overwrite(stopped / "commits.bin", 5 * RECORD_BYTES, bytes(2 * RECORD_BYTES))
    with RowLog(stopped, read_only=True) as log:
        assert log.count == 5
    with RowLog(stopped) as log:
        assert log.count == 5
        log.append(iterates()[5] - iterates()[0], step=5)  # the same again, so that record 6 would fit
        log.append(iterates()[6] - iterates()[0], step=6)
    with RowLog(stopped) as log:
        assert log.count == 7


# damage ---------------------------------------------------------------------------------------------------------------


def test_damaged_row_in_the_middle_is_reported_on_opening(log: Path) -> None:
    flip(log / "rows-000000.bin", 5 * 4096 + 100)
    for read_only in (True, False):
        with pytest.raises(CorruptError, match="1 of 12 rows .* the first is row 5; .*salvage=True"):
            RowLog(log, read_only=read_only)
    with RowLog(log, read_only=True, salvage=True) as opened:
        assert opened.count == 5
    with pytest.raises(CorruptError):  # reading took nothing away
        RowLog(log)
    with RowLog(log, salvage=True) as opened:
        assert (opened.count, opened.damaged()) == (5, [])
    with RowLog(log) as opened:
        assert opened.count == 5


def test_damaged_row_among_many_is_reported_by_row_and_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_TAIL_BYTES", 10 * 4096)  # rows that are looked at on opening
    with RowLog(tmp_path / "log") as log:
        log.create(P)
        for theta in iterates(100):
            log.append(theta)
    flip(tmp_path / "log" / "rows-000000.bin", 5 * 4096 + 100)
    with RowLog(tmp_path / "log", read_only=True) as log:
        assert (log.count, log.damaged(), log.damaged(newest=94)) == (100, [5], [])
        with pytest.raises(CorruptError, match="row 5 does not match"):
            log.row(5)
        assert torch.equal(log.row(6), iterates(7)[6])


def test_garbled_record_in_the_middle_is_reported(log: Path) -> None:
    flip(log / "commits.bin", 5 * RECORD_BYTES + 20)
    for read_only in (True, False):
        with pytest.raises(CorruptError, match="behind its first 5 records, at least 7 more are lost"):
            RowLog(log, read_only=read_only)
    with RowLog(log, salvage=True) as opened:
        assert opened.count == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("manifest.json", "manifest.json"),
        ("commits.bin", "commits.bin is missing"),
        ("rows-000000.bin", "12 of 12 rows are missing"),
        ("reference.bin", "reference.bin is missing"),
    ],
)
def test_missing_file_is_reported_and_not_made_anew(log: Path, name: str, message: str) -> None:
    (log / name).unlink()
    for read_only in (True, False):
        with pytest.raises(WeightbankError, match=message):
            Moments(LAYOUT, rows=RowLog(log, read_only=read_only)).update(iterates()[0])
    assert not (log / name).exists()


def test_unreadable_disk_takes_no_rows_away(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def fail(descriptor: int, buffers: list[Any], offset: int) -> int:
        if len(buffers[0]) == 4 * P:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers, offset)

    (stopped / "staging.bin").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            RowLog(stopped)
    with RowLog(stopped) as log:
        assert log.count == 9


def cut(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def zero(file: Path, chance: random.Random) -> None:
    size = file.stat().st_size
    start = chance.randrange(size)
    overwrite(file, start, bytes(min(size - start, chance.choice([1, 64, 4096, size]))))


def garble(file: Path, chance: random.Random) -> None:
    size = file.stat().st_size
    start = chance.randrange(size)
    overwrite(file, start, chance.randbytes(min(size - start, chance.choice([1, 64, 4096]))))


def flip_bit(file: Path, chance: random.Random) -> None:
    flip(file, chance.randrange(file.stat().st_size))


def lengthen(file: Path, chance: random.Random) -> None:
    overwrite(file, file.stat().st_size, chance.randbytes(chance.choice([1, 64, 5000])))


def swap_for_directory(file: Path, chance: random.Random) -> None:
    file.unlink()
    file.mkdir()


def swap_for_pipe(file: Path, chance: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


FILES = ["manifest.json", "reference.bin", "commits.bin", "rows-000000.bin", "moments-a.bin", "moments-b.bin", "lock"]
DAMAGES = [cut, zero, garble, flip_bit, lengthen]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, "staging.bin"])
def test_damage_anywhere_is_an_error_of_ours_or_a_committed_state(
    closed: Path, killed: Path, tmp_path: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    damage_often(closed, killed, tmp_path, name, damage, trials=6)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, "staging.bin"])
def test_damage_at_many_places_is_an_error_of_ours_or_a_committed_state(
    closed: Path, killed: Path, tmp_path: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    damage_often(closed, killed, tmp_path, name, damage, trials=15)


def damage_often(
    closed: Path,
    killed: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path, random.Random], None],
    *,
    trials: int,
) -> None:
    chance = random.Random(name + damage.__name__)
    for trial in range(trials):
        whole = killed if name == "staging.bin" or trial % 3 == 2 else closed
        where = shutil.copytree(whole, tmp_path / str(trial))
        if (where / name).exists() and (where / name).stat().st_size:
            damage(where / name, chance)
        examine(where)
        shutil.rmtree(where)


@pytest.mark.parametrize("damage", [swap_for_directory, swap_for_pipe], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, "staging.bin"])
def test_what_is_no_file_neither_hangs_nor_crashes(
    killed: Path, tmp_path: Path, name: str, damage: Callable[[Path, random.Random], None]
) -> None:
    where = shutil.copytree(killed, tmp_path / "log")
    damage(where / name, random.Random(0))
    examine(where)


def examine(where: Path) -> None:
    """Each row is what was recorded or refused; the moments are those of the rows that are there."""
    thetas, lost = iterates(), 0
    for read_only in (True, False):
        try:
            with RowLog(where, read_only=read_only) as log:
                count = log.count
                assert count <= K
                assert log.steps == list(range(count))
                for number in range(count):
                    try:
                        assert torch.equal(log.row(number), thetas[number] - thetas[0])
                    except CorruptError:
                        lost += 1
                moments = Moments(LAYOUT, rows=log)
                assert moments.count == count
                if count:
                    expected = Moments(LAYOUT)
                    for theta in thetas[:count]:
                        expected.update(theta)
                    assert torch.equal(moments.mean(), expected.mean())
                    assert torch.equal(moments.variance(), expected.variance())
        except WeightbankError:
            continue
        assert not lost  # what can be opened here is so small that it was checked on opening


# strangers' files -----------------------------------------------------------------------------------------------------


def manifest(**changes: Any) -> bytes:
    """A manifest with a right checksum, whatever it says."""
    content = json.loads(Manifest(P, Native("float32"), None, Geometry.of(4 * P, None), LAYOUT).dump())
    del content["crc32"]
    content.update(changes)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "crc32": f"{zlib.crc32(text.encode()):08x}"}).encode()


def entries(count: int, shape: list[Any]) -> list[dict[str, Any]]:
    return [{"name": str(n), "shape": shape, "offset": n, "dtype": "float32"} for n in range(count)]


HOSTILE = {
    "huge rows": manifest(size=2**47, row_bytes=2**49, segment_rows=1, layout=None),
    "huge rows in huge segments": manifest(size=2**47, row_bytes=2**49, segment_rows=2**40, layout=None),
    "huge segments": manifest(segment_rows=2**47),
    "huge ring": manifest(keep=2**46, slots=2**46 + 5, segment_rows=64),
    "ring smaller than what it keeps": manifest(keep=9, slots=9),
    "ring without rows to keep": manifest(slots=9),
    "no segments": manifest(segment_rows=0),
    "other row bytes": manifest(row_bytes=4),
    "other version": manifest(version=2),
    "long version": manifest(version="9" * 10**6),
    "other kind": manifest(kind="rows"),
    "deep notes": manifest().replace(b"null", b"[" * 10**6 + b"]" * 10**6),
    "deep everything": b"[" * 10**7,
    "a million parameters": manifest(size=10**6, row_bytes=4 * 10**6, segment_rows=64, layout=entries(10**6, [1])),
    "many dimensions": manifest(layout=entries(1, [2**48 - 1] * 10**5)),
    "negative shape": manifest(layout=entries(1, [-10, -100])),
    "text for a shape": manifest(layout=entries(1, ["1000"])),
    "number for a shape": manifest(layout=[{"name": "w", "shape": 1000, "offset": 0, "dtype": "float32"}]),
    "numbers for parameters": manifest(layout=[1, 2]),
    "text for parameters": manifest(layout="1000"),
    "other layout": manifest(layout=entries(1, [P + 1])),
    "many digits": manifest().replace(b'"size": 1000', b'"size": ' + b"1" * 10**6),
    "not a number": manifest().replace(b'"size": 1000', b'"size": NaN'),
    "no number": manifest(size=None),
    "a fraction": manifest(size=1000.5),
    "truth": manifest(size=True, row_bytes=4, layout=None),
    "nothing": manifest(size=0, row_bytes=0, layout=None),
    "negative": manifest(size=-1000),
    "code": manifest(format="__import__('os').mkdir('run')"),
    "a call": manifest(format="Native(print('run'))"),
    "an attribute": manifest(format="Native('float32').__class__"),
    "parentheses": manifest(format="BlockFloatingPoint(" + "(" * 150),
    "no rows in this format": manifest(format="BlockFloatingPoint(8)"),
    "huge blocks": manifest(format="BlockFloatingPoint(8, block=1000000000)"),
    "list for a format": manifest(format=["Native('float32')"]),
    "empty": b"",
    "a list": b"[]",
    "zeros": bytes(4096),
    "not utf-8": b'{"kind": "\xff\xfe"}',
}


def open_under_a_memory_limit(tell: Tell, *folders: str) -> None:
    """A child: open each folder with 400 MB of address space to spare."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
    for number, folder in enumerate(folders):
        for read_only in (True, False):
            with contextlib.suppress(WeightbankError), RowLog(folder, read_only=read_only) as log:
                log.damaged()
                log.row(0)
        tell(number)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(__file__) as children:
        yield children


def test_hostile_files_raise_our_errors_within_bounded_memory_and_time(
    children: Children, closed: Path, tmp_path: Path
) -> None:
    for name, text in HOSTILE.items():
        shutil.copytree(closed, tmp_path / name)
        (tmp_path / name / "manifest.json").write_bytes(text)
    start = time.monotonic()
    child = children.start("open_under_a_memory_limit", *(str(tmp_path / name) for name in HOSTILE))
    assert list(HOSTILE)[child.wait()] == list(HOSTILE)[-1]
    assert child.status == 0
    assert time.monotonic() - start < 60
    assert not Path("run").exists()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "huge ring"])
def test_hostile_manifest_is_refused(closed: Path, tmp_path: Path, name: str) -> None:
    where = shutil.copytree(closed, tmp_path / "log")
    (where / "manifest.json").write_bytes(HOSTILE[name])
    with pytest.raises(CorruptError) as caught:
        RowLog(where)
    assert len(str(caught.value)) < 1000


def test_rows_claimed_to_be_huge_are_not_allocated(children: Children, tmp_path: Path) -> None:
    """A consistent manifest and valid records, for rows of 512 TiB that are not there."""
    where = tmp_path / "log"
    where.mkdir()
    (where / "manifest.json").write_bytes(HOSTILE["huge rows"])
    (where / "commits.bin").write_bytes(b"".join(Record(n, n, n, 0).pack() for n in range(20_000)))
    (where / "rows-000000.bin").write_bytes(bytes(100))
    (where / "staging.bin").write_bytes(Record(20_000, 0, 20_000, 0).pack() + bytes(100_000))
    (where / "reference.bin").write_bytes(bytes(100))
    child = children.start("open_under_a_memory_limit", str(where))
    assert (child.wait(), child.status) == (0, 0)
    with RowLog(where, read_only=True, salvage=True) as log:
        assert log.count == 0
        with pytest.raises(CorruptError, match="reference"):
            log.reference()

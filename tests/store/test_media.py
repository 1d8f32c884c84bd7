"""Files and memory as places for bytes; what happens when they are full, unreadable, or not ours."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from killing import Children, Tell
from weightbank.distributions import Moments
from weightbank.errors import CapacityError, CorruptError, LockedError, StoreError
from weightbank.layout import Entry, Layout
from weightbank.store import RowLog, media
from weightbank.store.media import Blob, Directory, FileBlob, Medium, allocate
from weightbank.store.memory import Memory
from weightbank.store.place import medium_of

MIB = 1 << 20
P = 250_000  # 1 MB a row


@pytest.fixture(params=["directory", "memory"])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    return Directory(tmp_path / "place") if request.param == "directory" else Memory()


def content(number: int) -> torch.Tensor:
    return torch.arange(P, dtype=torch.float32).remainder(997) + number


# blobs and media ------------------------------------------------------------------------------------------------------


def test_blob_reads_back_what_was_written(medium: Medium) -> None:
    blob = medium.open("a", writable=True)
    assert isinstance(blob, Blob)
    blob.reserve(100)
    assert blob.size == 100
    blob.write(10, bytes(range(50)))
    blob.write(70, np.arange(5, dtype=np.uint8))
    out = np.empty(40, np.uint8)
    blob.read_into(5, out)
    assert out.tolist() == [0] * 5 + list(range(35))
    strided = np.empty((3, 4), np.uint8)
    blob.read_strided(10, 20, strided)
    assert strided.tolist() == [[0, 1, 2, 3], [20, 21, 22, 23], [40, 41, 42, 43]]
    blob.read_strided(1000, 20, np.empty((0, 4), np.uint8))
    blob.close()


def test_blob_that_grows_again_has_zeros_where_it_was_trimmed(medium: Medium) -> None:
    blob = medium.open("a", writable=True)
    blob.reserve(10_000)
    blob.write(0, b"\xff" * 10_000)
    blob.reserve(5)  # it has more
    blob.trim(20_000)  # it has less
    assert blob.size == 10_000
    blob.trim(5000)
    assert blob.size == 5000
    blob.reserve(9000)
    out = np.empty(9000, np.uint8)
    blob.read_into(0, out)
    assert out.tolist() == [255] * 5000 + [0] * 4000
    blob.close()


@pytest.mark.parametrize(("offset", "length"), [(90, 11), (100, 1), (2**70, 1), (0, 101)])
def test_bytes_beyond_the_end_are_corrupt(medium: Medium, offset: int, length: int) -> None:
    blob = medium.open("a", writable=True)
    blob.reserve(100)
    with pytest.raises(CorruptError, match="ends at byte 100"):
        blob.read_into(offset, np.empty(length, np.uint8))
    with pytest.raises(CorruptError, match="ends at byte 100"):
        blob.read_strided(offset, 200, np.empty((1, length), np.uint8))
    blob.close()


def test_replaced_blob_is_the_new_one_and_removed_is_gone(medium: Medium) -> None:
    medium.lock()
    medium.replace("a", b"old")
    medium.replace("a", b"new!")
    assert (medium.exists("a"), medium.read("a", 4)) == (True, b"new!")
    medium.remove("a")
    medium.remove("a")
    assert not medium.exists("a")
    medium.unlock()


def test_interrupted_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Directory(tmp_path)
    place.replace("a", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CapacityError, match="no room for 3 bytes"):
        place.replace("a", b"new")
    assert place.read("a", 3) == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_small_file_that_is_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 1 << 40)
    with pytest.raises(CorruptError, match="more than 1,000 bytes"):
        Directory(tmp_path).read("a", 1000)


def test_memory_that_is_not_there_is_a_capacity_error() -> None:
    with pytest.raises(CapacityError, match="no memory for 1,125,899,906,842,624 bytes"):
        allocate(2**50, "this")
    with pytest.raises(CapacityError, match="no memory for"):
        Memory().open("a", writable=True).reserve(2**50)


def test_new_file_is_found_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sync of a new file syncs the directory that names it, later ones do not."""
    synced: list[Path] = []
    monkeypatch.setattr(media, "sync_directory", synced.append)
    blob = FileBlob(tmp_path / "a", writable=True)
    blob.sync()
    blob.sync()
    FileBlob(tmp_path / "a", writable=True).sync()
    assert synced == [tmp_path]


def test_sizes_are_what_the_files_take(tmp_path: Path) -> None:
    place = Directory(tmp_path / "place")
    assert place.sizes() == {}
    place.replace("a", b"x" * 5000)
    place.open("b", writable=True).reserve(MIB)
    assert place.sizes() == {"a": 8192, "b": MIB}


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    one, other = Directory(tmp_path), Directory(tmp_path)
    one.lock()
    with pytest.raises(LockedError):
        other.lock()
    other.unlock()  # it holds nothing
    with pytest.raises(LockedError):
        other.lock()
    one.unlock()
    other.lock()
    other.unlock()


# a full disk ----------------------------------------------------------------------------------------------------------


def test_segment_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = os.posix_fallocate, False

    def allocate_or_fail(descriptor: int, offset: int, length: int) -> None:
        if full and "rows-" in os.readlink(f"/proc/self/fd/{descriptor}"):  # noqa: PTH115
            real(descriptor, offset, min(length, 8192))  # some file systems have taken a part by then
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate_or_fail)
    with RowLog(tmp_path / "log") as log:
        log.create(P)
        for number in range(64):  # one segment
            log.append(content(number))
        log.flush()
        full, before = True, {file: file.stat().st_size for file in (tmp_path / "log").iterdir()}
        for _ in range(6):
            with pytest.raises(CapacityError, match=r"rows-000001.bin: no room for .*free some space"):
                log.append(content(64))
        assert {file: file.stat().st_size for file in (tmp_path / "log").iterdir()} == before
        assert log.count == 64
        full = False
        log.append(content(64))
    with RowLog(tmp_path / "log") as log:
        assert (log.count, log.damaged()) == (65, [])
        assert torch.equal(log.row(64), content(64))


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    """A file system of its own, which can really be full."""
    where.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "weightbank-test", str(where)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small tmpfs")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill_up(log: RowLog) -> None:
    while log.count < 1000:
        log.append(content(log.count))


def test_full_file_system_keeps_all_rows_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "40m") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(10 * MIB))
        log = RowLog(disk / "log")
        log.create(P)
        with pytest.raises(CapacityError, match="no room"):
            fill_up(log)
        count = log.count
        assert 24 <= count <= 28  # of 31 in 30 MiB four are for staging; a whole segment would have 64
        log.flush()
        ballast.unlink()
        log.append(content(count))
        with pytest.raises(CapacityError):
            fill_up(log)
        log.close()
        with RowLog(disk / "log") as log:
            assert log.count > count
            assert log.damaged() == []
            assert all(torch.equal(log.row(number), content(number)) for number in range(log.count))
            log.truncate(3)
            log.append(content(3))
            assert torch.equal(log.row(3), content(3))


def test_log_on_a_full_disk_can_be_opened_read_and_truncated(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        with RowLog(disk / "log") as log:
            log.create(1000)
            for number in range(3):
                log.append(torch.full((1000,), float(number)))
        with open(disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        with RowLog(disk / "log", read_only=True) as log:
            assert log.row(2).sum() == 2000
        with RowLog(disk / "log") as log:
            for _ in range(6):
                with pytest.raises(CapacityError, match="no room"):
                    log.append(torch.ones(1000))
            log.truncate(2)
            assert log.count == 2
        (disk / "ballast").unlink()
        with RowLog(disk / "log") as log:
            log.append(torch.ones(1000))
            assert (log.count, log.damaged()) == (3, [])


def test_moments_on_a_full_disk_keep_what_they_took(tmp_path: Path) -> None:
    layout = Layout((Entry("w", (P,), 0, torch.float32),))
    with small_disk(tmp_path / "disk", "30m") as disk:
        moments, expected = Moments(layout, rows=RowLog(disk / "log")), Moments(layout)
        with contextlib.suppress(CapacityError):
            for number in range(1000):
                moments.update(content(number))
                expected.update(content(number))
        assert moments.count == expected.count
        assert 10 < expected.count < 30
        with pytest.raises(CapacityError):
            moments.update(content(expected.count))
        assert torch.equal(moments.mean(), expected.mean())
        assert moments.rows is not None
        moments.rows.close()
        again = Moments(layout, rows=RowLog(disk / "log", read_only=True))
        assert again.count == expected.count
        assert torch.equal(again.mean(), expected.mean())
        assert torch.equal(again.variance(), expected.variance())


def append_under_a_file_size_limit(tell: Tell, where: str, durability: str) -> None:
    """A child: append up to the limit, then lift it and go on; tell the counts."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, resource.RLIM_INFINITY))
    with RowLog(where, durability=durability) as log:  # type: ignore[arg-type]
        log.create(P)
        for _ in range(2):
            try:
                fill_up(log)
            except CapacityError:
                tell(log.count)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.append(content(log.count))
        tell(log.count)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(__file__) as children:
        yield children


@pytest.mark.parametrize("durability", ["process", "commit"])
def test_limit_on_file_sizes_is_a_full_disk(children: Children, tmp_path: Path, durability: str) -> None:
    child = children.start("append_under_a_file_size_limit", str(tmp_path / "log"), durability)
    assert [child.hear(), child.hear(), child.hear(), child.hear()] == [10, 10, 11, None]
    assert child.status == 0
    with RowLog(tmp_path / "log") as log:
        assert (log.count, log.damaged()) == (11, [])
        assert all(torch.equal(log.row(number), content(number)) for number in range(11))


# no permission --------------------------------------------------------------------------------------------------------


def open_as_nobody(tell: Tell, where: str, elsewhere: str) -> None:
    """A child: without rights to write there, read a log; tell 1 for each error as it should be, 0 otherwise."""
    os.setgid(65534)
    os.setuid(65534)
    with RowLog(where, read_only=True) as log:
        tell(log.count)
    for use in (lambda: RowLog(where), lambda: RowLog(elsewhere).create(10)):
        try:
            use()
        except StoreError as error:
            tell(int("Permission denied" in str(error)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_log_of_somebody_else_can_be_read_along_but_not_written(children: Children) -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        where.chmod(0o755)
        with RowLog(where / "log") as log:
            log.create(10)
            log.append(torch.ones(10))
            log.flush()
            (where / "log").chmod(0o755)
            child = children.start("open_as_nobody", str(where / "log"), str(where / "other"))
            assert [child.hear(), child.hear(), child.hear(), child.hear()] == [1, 1, 1, None]
            assert child.status == 0


def test_failing_disk_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    blob = FileBlob(tmp_path / "a", writable=True)
    blob.reserve(100)
    for call in ("preadv", "pwrite", "fdatasync", "ftruncate"):
        monkeypatch.setattr(os, call, fail)
    for use in (
        lambda: blob.read_into(0, np.empty(10, np.uint8)),
        lambda: blob.read_strided(0, 20, np.empty((2, 10), np.uint8)),
        lambda: blob.write(0, b"x"),
        blob.sync,
        lambda: blob.trim(10),
    ):
        with pytest.raises(StoreError, match="a: Input/output error"):
            use()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("where", [None, 5, b"x", ["a"]])
def test_what_is_no_place_is_refused(where: object) -> None:
    with pytest.raises(StoreError, match=f"a {type(where).__name__} came for the place of the rows"):
        medium_of(where)  # type: ignore[arg-type]


def test_an_empty_text_is_no_directory() -> None:
    with pytest.raises(StoreError, match="an empty text"):
        medium_of("")

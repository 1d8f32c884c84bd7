"""Logs on a device-DAX node, emulated by a plain file."""

import io
import os
import random
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from emulated_dax import AREA, MIB, Emulated, contents
from weightbank.errors import CapacityError, LockedError, StoreError
from weightbank.formats import BlockFloatingPoint, Native
from weightbank.store import RowLog
from weightbank.store.dax import DaxDevice


@pytest.fixture
def dax(tmp_path: Path) -> Emulated:
    return Emulated(tmp_path)


def rows_of(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(5))


def numbered(row: int, size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float32).remainder(1000) + 1000 * row


@pytest.mark.parametrize("format", [Native("float32"), BlockFloatingPoint(8, block=64)], ids=repr)
def test_log_on_a_device_equals_log_in_a_directory(format: Any, dax: Emulated, tmp_path: Path) -> None:
    rows = rows_of(7, 1000)
    outs = []
    for where in (dax.device(), tmp_path / "folder"):
        with RowLog(where, format=format) as log:
            log.create(1000)
            log.set_reference(rows[0])
            for row in rows[:4]:
                log.append(row)
        reopened = dax.device() if isinstance(where, DaxDevice) else where
        with RowLog(reopened) as log:
            for step, row in enumerate(rows[4:], 100):
                log.append(row, step=step)
        with RowLog(reopened, read_only=True) as log:
            assert log.format == format
            assert log.steps == [0, 1, 2, 3, 100, 101, 102]
            out = torch.empty(3, 512)
            log.read(range(1, 7, 2), slice(64, 576), out)
            reference = log.reference()
            assert reference is not None
            assert torch.equal(reference, rows[0])
            outs.append(torch.cat([out.reshape(-1), *(log.row(number) for number in range(7))]))
    assert torch.equal(*outs)


def test_ring_keeps_its_newest_rows(dax: Emulated) -> None:
    with RowLog(dax.device()) as log:
        log.create(100, keep=5)
        for number in range(23):
            log.append(numbered(number, 100))
    with RowLog(dax.device(), read_only=True) as log:
        assert (log.first, log.count) == (18, 23)
        assert all(torch.equal(log.row(number), numbered(number, 100)) for number in range(18, 23))


def test_full_device_refuses_with_its_size_and_keeps_all_rows(dax: Emulated) -> None:
    # 241,664 bytes a row: a segment of 16 MiB has 69 rows; on 24 MiB there is room for one from 4 MiB on, and from
    # 20 MiB on for 17 rows more
    size, rows = 60_000, 69 + 17
    dax.describe(24 * MIB)
    device = dax.device()
    log = RowLog(device)
    log.create(size)
    with pytest.raises(CapacityError, match="25,165,824"):
        fill_up(log)
    assert log.count == rows
    before = contents(device)
    with pytest.raises(CapacityError):
        log.append(numbered(0, size))
    assert contents(device) == before
    log.close()
    with RowLog(dax.device()) as log:
        assert log.count == rows
        assert all(torch.equal(log.row(number), numbered(number, size)) for number in range(rows))
        with pytest.raises(CapacityError):
            log.append(numbered(0, size))


def fill_up(log: RowLog) -> None:
    for number in range(1000):
        log.append(numbered(number, log.size))


def test_reader_sees_rows_that_come_while_it_reads(dax: Emulated) -> None:
    with RowLog(dax.device()) as log:
        log.create(10)
        log.append(numbered(0, 10))
        with RowLog(dax.device(), read_only=True) as reader:
            assert reader.count == 1
            for number in range(1, 1500):  # beyond the first 1,024 records, so the commit log grows under the reader
                log.append(numbered(number, 10))
            assert reader.refresh() == 1500
            assert torch.equal(reader.row(1499), numbered(1499, 10))


WRITER = """
import os, struct, sys
import torch
from weightbank.store import RowLog
from weightbank.store.dax import DaxDevice

def tell(number):
    os.write(1, struct.pack("<q", number))

torch.set_num_threads(1)
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        tell(os.getpid())
        log = RowLog(DaxDevice(sys.argv[1], sysfs=sys.argv[2]))
        while True:
            log.append(torch.arange(log.size, dtype=torch.float32).remainder(1000) + 1000 * log.count)
            tell(log.count)
    os.waitpid(child, 0)
    tell(-1)
"""


def test_killed_writer_leaves_whole_rows_and_all_that_it_told_of(dax: Emulated) -> None:
    size, chance = 30_000, random.Random(3)
    with RowLog(dax.device()) as log:
        log.create(size)
    command = [sys.executable, "-c", WRITER, str(dax.node), str(dax.sysfs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for _ in range(8):
            writer.stdin.write(b"\n")
            told = numbers(writer.stdout)
            child = next(told)
            counts = [next(told) for _ in range(chance.randrange(1, 20))]
            time.sleep(chance.random() * 1e-3)
            os.kill(child, signal.SIGKILL)
            counts += told
            with RowLog(dax.device()) as log:
                assert log.count >= max(counts)
                assert log.damaged() == []
                assert all(torch.equal(log.row(number), numbered(number, size)) for number in range(log.count))
        writer.stdin.close()


def numbers(pipe: IO[bytes]) -> Iterator[int]:
    """What a child tells, up to its death."""
    while (number := struct.unpack("<q", pipe.read(8))[0]) >= 0:
        yield number


def test_second_writer_is_refused_until_the_first_closes(dax: Emulated) -> None:
    with RowLog(dax.device()) as log:
        log.create(10)
        with pytest.raises(LockedError):
            RowLog(dax.device())
        with pytest.raises(LockedError):
            dax.device(erase=True).lock()
        log.append(numbered(0, 10))
    with RowLog(dax.device()) as log:
        assert log.count == 1


def test_forked_child_neither_has_nor_keeps_the_lock(dax: Emulated) -> None:
    device = dax.device()
    device.replace("a", b"12345")
    blob = device.open("a", writable=True)
    from_child, to_parent = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which the child does not need
        child = os.fork()
    if child == 0:
        try:
            found = device.read("a", 5)
            for forbidden in (lambda: blob.write(0, b"x"), lambda: blob.reserve(9), lambda: device.replace("a", b"")):
                try:
                    forbidden()
                except StoreError:
                    found += b"!"
            os.write(to_parent, found)
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(from_child, 100) == b"12345!!!"
        with pytest.raises(LockedError):
            dax.device().lock()
        device.unlock()
        other = dax.device()
        other.lock()
        other.unlock()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(from_child)
        os.close(to_parent)
    assert device.read("a", 5) == b"12345"


def test_whole_life_of_a_log_without_file_calls(dax: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a device-DAX node has no such call")

    def open_other(path: Any, *arguments: Any, **options: Any) -> Any:
        assert Path(path) != dax.node
        return real_open(path, *arguments, **options)

    real_open = io.open
    monkeypatch.setattr(io, "open", open_other)
    monkeypatch.setattr("builtins.open", open_other)
    calls = "read readv pread preadv write writev pwrite pwritev fsync fdatasync sync truncate ftruncate lseek sendfile"
    for call in [*calls.split(), "posix_fallocate", "posix_fadvise", "copy_file_range"]:
        monkeypatch.setattr(os, call, refuse)
    with RowLog(dax.device(), durability="commit") as log:
        log.create(1000)
        log.set_reference(numbered(0, 1000))
        for number in range(5):
            log.append(numbered(number, 1000))
        log.flush(durable=True)
        log.truncate(3)
    with RowLog(dax.device(), read_only=True) as log:
        assert torch.equal(log.row(2), numbered(2, 1000))
        assert log.count == 3


def test_reading_opens_and_maps_the_node_for_reading_only(dax: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    with RowLog(dax.device()) as log:
        log.create(10)
        log.append(numbered(0, 10))
    flags: list[int] = []
    real_open = os.open

    def remember(path: Any, flag: int, *more: Any) -> int:
        flags.append(flag & os.O_ACCMODE)
        return real_open(path, flag, *more)

    monkeypatch.setattr(os, "open", remember)
    device = dax.device()
    with RowLog(device, read_only=True) as log:
        assert torch.equal(log.row(0), numbered(0, 10))
        assert not device.used("commits.bin").flags.writeable
        with pytest.raises(StoreError, match="read-only"):
            device.open("commits.bin", writable=False).write(0, b"x")
    assert set(flags) == {os.O_RDONLY}


@pytest.mark.parametrize("offset", [0, 1024, AREA - 1])
def test_foreign_content_is_refused_and_left_alone(offset: int, dax: Emulated) -> None:
    dax.overwrite(offset, b"y")
    before = dax.peek(0, 4 * MIB)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"not blank.*erase=True"):
            RowLog(dax.device(), read_only=read_only)
    with pytest.raises(StoreError, match="not blank"):
        dax.device().lock()
    assert dax.peek(0, 4 * MIB) == before


def test_erase_starts_anew_only_when_writing(dax: Emulated) -> None:
    dax.overwrite(0, b"somebody's superblock" * 1000)
    with pytest.raises(StoreError, match="no rows here"):
        RowLog(dax.device(erase=True), read_only=True)
    assert dax.peek(0, 8) == b"somebody"
    for size in (10, 20):  # the second time it is a log of ours that is erased
        with RowLog(dax.device(erase=True)) as log:
            log.create(size)
            assert log.count == 0
            log.append(numbered(0, size))
    with RowLog(dax.device(), read_only=True) as log:
        assert (log.size, log.count) == (20, 1)


def test_blank_device_holds_no_log_and_stays_blank_when_read(dax: Emulated) -> None:
    with pytest.raises(StoreError, match="no rows here"):
        RowLog(dax.device(), read_only=True)
    assert dax.device().sizes() == {}
    assert dax.peek(0, AREA) == bytes(AREA)

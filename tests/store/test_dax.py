"""A plain file stands in for the node, a folder for sysfs: the code path of a device, not a claim about hardware."""

import errno
import io
import json
import mmap
import os
import random
import signal
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weightbank.errors import CapacityError, CorruptError, LockedError, StoreError
from weightbank.formats import BlockFloatingPoint, Native
from weightbank.store import RowLog
from weightbank.store import node as node_module
from weightbank.store.dax import DaxDevice
from weightbank.store.node import MappedNode

MIB = 1 << 20
AREA, COPIES = 2 * MIB, (4096, 1 * MIB)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return describe(tmp_path / "sys", "0:0", 64 * MIB)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return blank(tmp_path / "dax0.0", 64 * MIB)


def describe(sysfs: Path, numbers: str, size: int | str, align: int = 2 * MIB) -> Path:
    entry = sysfs / numbers
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "size").write_text(f"{size}\n")
    (entry / "align").write_text(f"{align}\n")
    return sysfs


def blank(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def peek(path: Path, offset: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


def contents(device: DaxDevice) -> dict[str, bytes]:
    return {name: device.read(name, 64 * MIB) for name in device.sizes()}


def rows_of(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(5))


def numbered(row: int, size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float32).remainder(1000) + 1000 * row


# a log on it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [Native("float32"), BlockFloatingPoint(8, block=64)], ids=repr)
def test_log_on_a_device_equals_log_in_a_directory(format: Any, node: Path, sysfs: Path, tmp_path: Path) -> None:
    rows = rows_of(7, 1000)
    outs = []
    for where in (DaxDevice(node, sysfs=sysfs), tmp_path / "folder"):
        with RowLog(where, format=format) as log:
            log.create(1000)
            log.set_reference(rows[0])
            for row in rows[:4]:
                log.append(row)
        reopened = DaxDevice(node, sysfs=sysfs) if isinstance(where, DaxDevice) else where
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


def test_ring_keeps_its_newest_rows(node: Path, sysfs: Path) -> None:
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        log.create(100, keep=5)
        for number in range(23):
            log.append(numbered(number, 100))
    with RowLog(DaxDevice(node, sysfs=sysfs), read_only=True) as log:
        assert (log.first, log.count) == (18, 23)
        assert all(torch.equal(log.row(number), numbered(number, 100)) for number in range(18, 23))


def test_full_device_refuses_with_its_size_and_keeps_all_rows(node: Path, sysfs: Path) -> None:
    size = 60_000  # 240,000 bytes, so 69 rows in a segment of 16 MiB
    device = DaxDevice(node, sysfs=sysfs)
    log = RowLog(device)
    log.create(size)
    with pytest.raises(CapacityError, match="67,108,864"):
        fill_up(log)
    count, before = log.count, contents(device)
    assert count >= 3 * 69
    with pytest.raises(CapacityError):
        log.append(numbered(0, size))
    assert contents(device) == before
    log.close()
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        assert log.count == count
        assert all(torch.equal(log.row(number), numbered(number, size)) for number in range(count))
        with pytest.raises(CapacityError):
            log.append(numbered(0, size))


def fill_up(log: RowLog) -> None:
    for number in range(1000):
        log.append(numbered(number, log.size))


def test_reader_sees_rows_that_come_while_it_reads(node: Path, sysfs: Path) -> None:
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        log.create(10)
        log.append(numbered(0, 10))
        with RowLog(DaxDevice(node, sysfs=sysfs), read_only=True) as reader:
            assert reader.count == 1
            for number in range(1, 1500):  # beyond the first 1,024 records, so the commit log grows under the reader
                log.append(numbered(number, 10))
            assert reader.refresh() == 1500
            assert torch.equal(reader.row(1499), numbered(1499, 10))


def test_killed_writer_leaves_whole_rows_and_all_that_it_told_of(node: Path, sysfs: Path) -> None:
    size, chance = 30_000, random.Random(3)
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        log.create(size)
    for _ in range(5):
        told = kill_while_appending(node, sysfs, size, rows=chance.randrange(1, 30), wait=chance.random() * 2e-4)
        with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
            assert log.count >= told
            assert log.damaged() == []
            assert all(torch.equal(log.row(number), numbered(number, size)) for number in range(log.count))


def kill_while_appending(node: Path, sysfs: Path, size: int, *, rows: int, wait: float) -> int:
    """Kill a process after it told of `rows` more rows and `wait` seconds; returns the rows it told of in all."""
    told_from, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child calls nothing that needs other threads
        child = os.fork()
    if child == 0:
        try:
            log = RowLog(DaxDevice(node, sysfs=sysfs))
            while True:
                log.append(numbered(log.count, size))
                os.write(tell, struct.pack("<q", log.count))
        finally:
            os._exit(1)
    os.close(tell)
    with open(told_from, "rb", buffering=0) as pipe:
        for _ in range(rows):
            pipe.read(8)
        threading.Event().wait(wait)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        last = pipe.read(64 * 1024)
    with RowLog(DaxDevice(node, sysfs=sysfs), read_only=True) as log:
        return max([log.count if not last else 0, *(number for (number,) in struct.iter_unpack("<q", last))])


def test_second_writer_is_refused_until_the_first_closes(node: Path, sysfs: Path) -> None:
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        log.create(10)
        with pytest.raises(LockedError):
            RowLog(DaxDevice(node, sysfs=sysfs))
        with pytest.raises(LockedError):
            DaxDevice(node, sysfs=sysfs, erase=True).lock()
        log.append(numbered(0, 10))
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        assert log.count == 1


def test_whole_life_of_a_log_without_file_calls(node: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a device-DAX node has no such call")

    def open_other(path: Any, *arguments: Any, **options: Any) -> Any:
        assert Path(path) != node
        return real_open(path, *arguments, **options)

    real_open = io.open
    monkeypatch.setattr(io, "open", open_other)
    monkeypatch.setattr("builtins.open", open_other)
    calls = "read readv pread preadv write writev pwrite pwritev fsync fdatasync sync truncate ftruncate lseek sendfile"
    for call in [*calls.split(), "posix_fallocate", "posix_fadvise", "copy_file_range"]:
        monkeypatch.setattr(os, call, refuse)
    with RowLog(DaxDevice(node, sysfs=sysfs), durability="commit") as log:
        log.create(1000)
        log.set_reference(numbered(0, 1000))
        for number in range(5):
            log.append(numbered(number, 1000))
        log.flush(durable=True)
        log.truncate(3)
    with RowLog(DaxDevice(node, sysfs=sysfs), read_only=True) as log:
        assert torch.equal(log.row(2), numbered(2, 1000))
        assert log.count == 3


def test_reading_opens_and_maps_the_node_for_reading_only(
    node: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        log.create(10)
        log.append(numbered(0, 10))
    flags: list[int] = []
    real_open = os.open

    def remember(path: Any, flag: int, *more: Any) -> int:
        flags.append(flag & os.O_ACCMODE)
        return real_open(path, flag, *more)

    monkeypatch.setattr(os, "open", remember)
    device = DaxDevice(node, sysfs=sysfs)
    with RowLog(device, read_only=True) as log:
        assert torch.equal(log.row(0), numbered(0, 10))
        assert not device.used("commits.bin").flags.writeable
        with pytest.raises(StoreError, match="read-only"):
            device.open("commits.bin", writable=False).write(0, b"x")
    assert set(flags) == {os.O_RDONLY}


# whose device it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1024, AREA - 1])
def test_foreign_content_is_refused_and_left_alone(offset: int, node: Path, sysfs: Path) -> None:
    overwrite(node, offset, b"y")
    before = peek(node, 0, 4 * MIB)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"not blank.*erase=True"):
            RowLog(DaxDevice(node, sysfs=sysfs), read_only=read_only)
    with pytest.raises(StoreError, match="not blank"):
        DaxDevice(node, sysfs=sysfs).lock()
    assert peek(node, 0, 4 * MIB) == before


def test_erase_starts_anew_only_when_writing(node: Path, sysfs: Path) -> None:
    overwrite(node, 0, b"somebody's superblock" * 1000)
    with pytest.raises(StoreError, match="no rows here"):
        RowLog(DaxDevice(node, sysfs=sysfs, erase=True), read_only=True)
    assert peek(node, 0, 8) == b"somebody"
    for size in (10, 20):  # the second time it is a log of ours that is erased
        with RowLog(DaxDevice(node, sysfs=sysfs, erase=True)) as log:
            log.create(size)
            assert log.count == 0
            log.append(numbered(0, size))
    with RowLog(DaxDevice(node, sysfs=sysfs), read_only=True) as log:
        assert (log.size, log.count) == (20, 1)


def test_blank_device_holds_no_log_and_stays_blank_when_read(node: Path, sysfs: Path) -> None:
    with pytest.raises(StoreError, match="no rows here"):
        RowLog(DaxDevice(node, sysfs=sysfs), read_only=True)
    assert DaxDevice(node, sysfs=sysfs).sizes() == {}
    assert peek(node, 0, AREA) == bytes(AREA)


@pytest.mark.parametrize("size", ["0", "", "many", "-4194304", "4194303"])
def test_node_without_a_usable_size_says_what_to_do(size: str, node: Path, sysfs: Path) -> None:
    describe(sysfs, "0:0", size)
    with pytest.raises(StoreError, match="daxctl"):
        DaxDevice(node, sysfs=sysfs)


def test_what_is_no_device_says_what_to_do(node: Path, sysfs: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not a character device.*daxctl"):
        DaxDevice(node)
    with pytest.raises(StoreError, match=r"No such file.*daxctl"):
        DaxDevice(tmp_path / "dax9.9")
    with pytest.raises(StoreError, match="daxctl"):
        RowLog("/dev/null")
    (sysfs / "0:0" / "subsystem").symlink_to(tmp_path)
    with pytest.raises(StoreError, match=f"kind '{tmp_path.name}', wanted kind 'dax'"):
        DaxDevice(node, sysfs=sysfs)


def test_node_that_may_not_be_opened_or_mapped_says_what_to_do(
    node: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(node, 63 * MIB)
    with pytest.raises(StoreError, match="cannot map its 67,108,864 bytes"):
        DaxDevice(node, sysfs=sysfs).exists("manifest.json")

    def forbid(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", forbid)
    with pytest.raises(StoreError, match=r"Permission denied.*chown"):
        DaxDevice(node, sysfs=sysfs).exists("manifest.json")


@pytest.mark.parametrize(
    ("size", "align", "limit"),
    [(64 * MIB + 4096, 2 * MIB, 64 * MIB), ("0x4000000", 2 * MIB, 64 * MIB), (48 * MIB, 32 * MIB, 32 * MIB)],
)
def test_whole_alignment_units_are_mapped(size: int | str, align: int, limit: int, node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=describe(sysfs, "0:0", size, align))
    device.lock()
    device.replace("a", bytes(10))
    assert device.limit == limit
    with pytest.raises(CapacityError, match=f"{limit:,}"):
        device.open("b", writable=True, capacity=limit - AREA)
    device.unlock()


# parts ----------------------------------------------------------------------------------------------------------------


def test_bytes_of_a_former_log_never_show_through(node: Path, sysfs: Path) -> None:
    for _ in range(2):
        device = DaxDevice(node, sysfs=sysfs, erase=True)
        blob = device.open("commits.bin", writable=True, capacity=3 * MIB)
        for size in (3 * MIB, 4 * MIB):  # the second one needs more room than was kept
            blob.reserve(size)
            assert device.read("commits.bin", size) == bytes(size)
            blob.write(0, b"\xff" * size)
            blob.trim(1000)
            assert blob.size == 1000
            blob.reserve(size)
            assert device.read("commits.bin", size) == b"\xff" * 1000 + bytes(size - 1000)
            blob.trim(0)
        device.unlock()


def test_growing_part_keeps_its_bytes_in_place_or_moved(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    blob = device.open("a", writable=True)
    blob.reserve(5000)
    blob.write(0, b"\x01" * 5000)
    at = address(device, "a")
    blob.reserve(9000)
    assert address(device, "a") == at  # nothing behind it: extended
    device.replace("wall", b"w" * 100)
    blob.reserve(20_000)
    assert address(device, "a") != at  # moved
    assert device.read("a", 20_000) == b"\x01" * 5000 + bytes(15_000)
    assert device.read("wall", 100) == b"w" * 100
    before = contents(device)
    with pytest.raises(CapacityError):
        blob.reserve(65 * MIB)
    assert contents(device) == before
    device.unlock()


def address(device: DaxDevice, name: str) -> int:
    return int(device.used(name).ctypes.data)


def test_room_of_replaced_and_removed_parts_is_used_again(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    for number in range(100):  # 500 MiB in all on a device of 64
        device.replace("moments", bytes([number]) * (5 * MIB))
        assert device.read("moments", 5 * MIB) == bytes([number]) * (5 * MIB)
    for number in range(10):
        device.open(f"rows-{number}", writable=True, capacity=40 * MIB)
        device.remove(f"rows-{number}")
        assert not device.exists(f"rows-{number}")
    device.unlock()


def test_replaced_part_and_reader_never_meet_half_way(node: Path, sysfs: Path) -> None:
    writer, reader = DaxDevice(node, sysfs=sysfs), DaxDevice(node, sysfs=sysfs)
    writer.replace("a", b"\x00" * 1000)
    over = threading.Event()

    def write() -> None:
        for number in range(1, 300):
            writer.replace("a", bytes([number % 256]) * (1000 + 100 * (number % 256)))
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not over.is_set():
        data = reader.read("a", MIB)
        assert data == bytes([data[0]]) * (1000 + 100 * data[0])
        seen.add(data[0])
    thread.join()
    assert len(seen) > 1
    writer.unlock()


def test_misuse_is_named(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    device.replace("a", b"12345")
    with pytest.raises(CorruptError, match="more than 4"):
        device.read("a", 4)
    with pytest.raises(StoreError, match="no b on this device; there are: a"):
        device.open("b", writable=False)
    blob = device.open("a", writable=True)
    with pytest.raises(CorruptError, match="ends at byte 5"):
        blob.write(3, b"123")
    with pytest.raises(CorruptError, match="ends at byte 5"):
        blob.read_into(0, np.empty(6, np.uint8))
    assert device.read("a", 5) == b"12345"
    device.unlock()


def test_table_without_room_refuses_and_stays(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    device.replace("a", b"1")
    with pytest.raises(CapacityError, match="2 parts"):
        device.replace("long" * 300_000, b"2")
    assert contents(device) == {"a": b"1"}
    device.unlock()


def test_views_outlive_the_writer_and_do_not_hold_its_lock(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    device.replace("a", b"12345")
    view = device.used("a")
    device.unlock()
    other = DaxDevice(node, sysfs=sysfs)
    other.lock()
    other.unlock()
    assert view.tobytes() == b"12345"
    assert device.read("a", 5) == b"12345"


# a death at any moment ------------------------------------------------------------------------------------------------

Step = tuple[Callable[[DaxDevice], object], dict[str, bytes]]
STEPS: list[Step] = [
    (lambda device: device.lock(), {}),
    (lambda device: device.replace("a", b"A" * 5000), {"a": b"A" * 5000}),
    (lambda device: device.open("j", writable=True, capacity=8192), {"a": b"A" * 5000, "j": b""}),
    (lambda device: device.open("j", writable=True).reserve(4096), {"a": b"A" * 5000, "j": bytes(4096)}),
    (lambda device: device.replace("b", b"B" * 9), {"a": b"A" * 5000, "j": bytes(4096), "b": b"B" * 9}),
    (lambda device: device.open("j", writable=True).reserve(9000), {"a": b"A" * 5000, "j": bytes(9000), "b": b"B" * 9}),
    (lambda device: device.replace("a", b"C" * 9000), {"a": b"C" * 9000, "j": bytes(9000), "b": b"B" * 9}),
    (lambda device: device.replace("a", b"D" * 10), {"a": b"D" * 10, "j": bytes(9000), "b": b"B" * 9}),
    (lambda device: device.remove("j"), {"a": b"D" * 10, "b": b"B" * 9}),
    (lambda device: device.replace("c", b"E" * 9000), {"a": b"D" * 10, "b": b"B" * 9, "c": b"E" * 9000}),
]


class Killed(BaseException):
    """The process ends here."""


def test_death_within_any_store_leaves_the_state_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs = describe(tmp_path / "sys", "0:0", 4 * MIB)
    deaths = 0
    for fraction in (0.0, 0.4, 1.0):
        for stores in range(1000):
            node = blank(tmp_path / f"dax-{fraction}-{stores}", 4 * MIB)
            state, after = die_after(stores, fraction, node, sysfs, monkeypatch)
            if after is None:
                break
            deaths += 1
            assert contents(DaxDevice(node, sysfs=sysfs)) in (state, after)
            heir = DaxDevice(node, sysfs=sysfs)
            heir.replace("heir", b"H" * 6000)
            heir.unlock()
            left = contents(DaxDevice(node, sysfs=sysfs))
            assert left.pop("heir") == b"H" * 6000
            assert left in (state, after)
            node.unlink()
    assert deaths > 3 * 2 * len(STEPS)


def die_after(
    stores: int, fraction: float, node: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], dict[str, bytes] | None]:
    """Run `STEPS` up to a death within one store; the states before and after the step that died, if one did."""
    device, left = DaxDevice(node, sysfs=sysfs), stores
    put, clear = MappedNode.put, MappedNode.clear

    def count(length: int) -> int:
        nonlocal left
        left -= 1
        if left >= 0:
            return length
        return 8 * round(fraction) if length == 8 else int(length * fraction)  # an aligned word is stored at once

    def dying_put(self: MappedNode, offset: int, data: bytes) -> None:
        done = count(len(data))
        put(self, offset, data[:done])
        if left < 0:
            raise Killed

    def dying_clear(self: MappedNode, offset: int, length: int) -> None:
        clear(self, offset, count(length))
        if left < 0:
            raise Killed

    state: dict[str, bytes] = {}
    with monkeypatch.context() as patch:
        patch.setattr(MappedNode, "put", dying_put)
        patch.setattr(MappedNode, "clear", dying_clear)
        try:
            for step, after in STEPS:
                step(device)
                assert contents(device) == after
                state = after
        except Killed:
            return state, after
        finally:
            device.unlock()
    return state, None


# a damaged or lying table ---------------------------------------------------------------------------------------------


def test_table_on_the_device_is_as_documented(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    device.replace("a", b"12345")
    device.open("b", writable=True, capacity=3 * MIB).reserve(7)
    device.unlock()
    assert peek(node, 0, 8) == b"WBDAX 1\n"
    found = {}
    for at in COPIES:
        generation, length, checksum = struct.unpack("<QII", peek(node, at, 16))
        text = peek(node, at + 16, length)
        assert zlib.crc32(peek(node, at, 12) + text) == checksum
        found[generation] = json.loads(text)
    assert found == {
        3: {"a": [2 * MIB, 4096, 5], "b": [4 * MIB, 3 * MIB, 0]},
        4: {"a": [2 * MIB, 4096, 5], "b": [4 * MIB, 3 * MIB, 7]},
    }


@pytest.mark.parametrize("inside", [0, 8, 12, 20])  # generation, length, checksum, text
def test_damaged_newer_table_falls_back_to_the_other(inside: int, node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    for number in range(5):  # generation 1 is the empty table, so generation 6 is the newest
        device.replace(f"a{number}", bytes([number]))
    device.unlock()
    overwrite(node, COPIES[0] + inside, b"\xee")
    device = DaxDevice(node, sysfs=sysfs)
    assert list(device.sizes()) == ["a0", "a1", "a2", "a3"]
    device.replace("new", b"5")
    device.unlock()
    assert list(DaxDevice(node, sysfs=sysfs).sizes()) == ["a0", "a1", "a2", "a3", "new"]


def test_two_damaged_tables_are_corrupt_and_not_overwritten(node: Path, sysfs: Path) -> None:
    with RowLog(DaxDevice(node, sysfs=sysfs)) as log:
        log.create(10)
    for at in COPIES:
        overwrite(node, at + 20, b"\xee")
    before = peek(node, 0, AREA)
    for read_only in (True, False):
        with pytest.raises(CorruptError, match="both copies"):
            RowLog(DaxDevice(node, sysfs=sysfs), read_only=read_only)
    assert peek(node, 0, AREA) == before
    DaxDevice(node, sysfs=sysfs, erase=True).open("a", writable=True)


LIES = {
    "beyond the device": {"a": [AREA, 63 * MIB, 1]},
    "in the table": {"a": [4096, 4096, 1]},
    "overlap": {"a": [AREA, 8192, 1], "b": [AREA + 4096, 4096, 1]},
    "more used than kept": {"a": [AREA, 4096, 4097]},
    "negative": {"a": [AREA, 4096, -1]},
    "negative room": {"a": [AREA, -4096, -4096]},
    "fraction": {"a": [AREA, 4096, 0.5]},
    "truth": {"a": [AREA, 4096, True]},
    "huge": {"a": [2**70, 1, 1]},
    "short": {"a": [AREA, 4096]},
    "text": {"a": "bcd"},
    "list": [1],
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_table_is_corrupt(lie: str, node: Path, sysfs: Path) -> None:
    plant(node, json.dumps(LIES[lie]).encode())
    with pytest.raises(CorruptError):
        DaxDevice(node, sysfs=sysfs).sizes()
    with pytest.raises(CorruptError):
        DaxDevice(node, sysfs=sysfs).lock()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 10_000 + b"}"])
def test_table_that_is_no_json_is_corrupt(text: bytes, node: Path, sysfs: Path) -> None:
    plant(node, text)
    with pytest.raises(CorruptError):
        DaxDevice(node, sysfs=sysfs).sizes()


def plant(node: Path, text: bytes) -> None:
    """Write a table with a right checksum, newer than any."""
    head = struct.pack("<QI", 2**40, len(text))
    overwrite(node, 0, b"WBDAX 1\n")
    overwrite(node, COPIES[0], head + struct.pack("<I", zlib.crc32(head + text)) + text)


# what sync does -------------------------------------------------------------------------------------------------------


def test_plain_file_is_synced_by_msync(node: Path, sysfs: Path) -> None:
    device = DaxDevice(node, sysfs=sysfs)
    assert device.persistence == "none"
    device.lock()
    assert device.persistence == "msync"
    blob = device.open("a", writable=True)
    blob.reserve(10_000)
    blob.write(5000, b"123")
    blob.sync()
    device.unlock()


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_refused_msync_promises_nothing_and_works_on(
    refusal: int, node: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_msync(monkeypatch, refusal)
    device = DaxDevice(node, sysfs=sysfs)
    with RowLog(device, durability="commit") as log:
        log.create(10)
        log.append(numbered(0, 10))
        log.flush(durable=True)
        assert device.persistence == "none"
    assert RowLog(DaxDevice(node, sysfs=sysfs), read_only=True).count == 1


def test_failing_msync_is_an_error(node: Path, sysfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_msync(monkeypatch, errno.EIO)
    with pytest.raises(StoreError, match="Input/output error"):
        DaxDevice(node, sysfs=sysfs).lock()
    monkeypatch.undo()
    DaxDevice(node, sysfs=sysfs).lock()


def refuse_msync(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Refusing(mmap.mmap):
        def flush(self, offset: int = 0, size: int = 0) -> None:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(mmap, "mmap", Refusing)


@pytest.fixture
def zero(tmp_path: Path) -> Iterator[DaxDevice]:
    """A real character device that can be mapped and shared within one mapping; its bytes go with it."""
    path = Path("/dev/zero")
    if not path.is_char_device():
        pytest.skip("no /dev/zero here")
    number = path.stat().st_rdev
    device = DaxDevice(path, sysfs=describe(tmp_path / "sys", f"{os.major(number)}:{os.minor(number)}", 64 * MIB))
    yield device
    device.unlock()


def test_character_device_is_synced_by_flushing_what_was_written(
    zero: DaxDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, int]] = []
    monkeypatch.setattr(node_module, "pmem_persist", lambda: lambda *where: flushed.append(where))
    blob = zero.open("a", writable=True, capacity=10_000)
    assert zero.persistence == "libpmem"
    blob.reserve(10_000)
    start = address(zero, "a")
    flushed.clear()
    blob.write(5000, b"123")
    blob.write(7000, b"45")
    blob.sync()
    blob.sync()
    assert flushed == [(start + 5000, 2002)]


def test_log_on_a_character_device(zero: DaxDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    zero.lock()
    if node_module.pmem_persist() is not None:
        assert zero.persistence == "libpmem"
    zero.unlock()
    with RowLog(zero, durability="commit") as log:
        log.create(1000)
        for number in range(3):
            log.append(numbered(number, 1000))
        log.flush(durable=True)
        assert all(torch.equal(log.row(number), numbered(number, 1000)) for number in range(3))

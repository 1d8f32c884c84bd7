"""Parts of a device and the table that finds them, through deaths and damage; the node is a plain file."""

import json
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emulated_dax import AREA, COPIES, MIB, Emulated, address, contents
from weightbank.errors import CapacityError, CorruptError, StoreError
from weightbank.store import RowLog
from weightbank.store.dax import DaxDevice
from weightbank.store.node import MappedNode


@pytest.fixture
def dax(tmp_path: Path) -> Emulated:
    return Emulated(tmp_path)


def test_bytes_of_a_former_log_never_show_through(dax: Emulated) -> None:
    for _ in range(2):
        device = dax.device(erase=True)
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


def test_growing_part_keeps_its_bytes_in_place_or_moved(dax: Emulated) -> None:
    device = dax.device()
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


def test_room_of_replaced_and_removed_parts_is_used_again(dax: Emulated) -> None:
    device = dax.device()
    for number in range(100):  # 500 MiB in all on a device of 64
        device.replace("moments", bytes([number]) * (5 * MIB))
        assert device.read("moments", 5 * MIB) == bytes([number]) * (5 * MIB)
    for number in range(2):
        device.open(f"rows-{number}", writable=True, capacity=40 * MIB).reserve(40 * MIB)
        device.remove(f"rows-{number}")
        assert not device.exists(f"rows-{number}")
    device.unlock()


def test_replaced_part_and_reader_never_meet_half_way(dax: Emulated) -> None:
    writer, reader = dax.device(), dax.device()
    writer.replace("a", b"\x00" * 1000)
    over = threading.Event()

    def write() -> None:
        try:
            for number in range(1, 300):
                writer.replace("a", bytes([number % 256]) * (1000 + 100 * (number % 256)))
        finally:
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


def test_misuse_is_named(dax: Emulated) -> None:
    device = dax.device()
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


def test_part_without_room_gets_what_there_is(dax: Emulated) -> None:
    device = dax.device()
    device.replace("a", bytes(10))
    blob = device.open("b", writable=True, capacity=1000 * MIB)
    with pytest.raises(CapacityError, match=f"{64 * MIB:,}"):
        blob.reserve(61 * MIB)
    assert blob.size == 0
    blob.reserve(60 * MIB)  # from 4 MiB on
    small = device.open("c", writable=True, capacity=1000 * MIB)
    with pytest.raises(CapacityError):
        small.reserve(2 * MIB)
    small.reserve(2 * MIB - 4096)  # what is left behind "a"
    with pytest.raises(CapacityError, match=" 0 are free"):
        device.replace("d", b"1")
    device.unlock()


def test_table_without_room_refuses_and_stays(dax: Emulated) -> None:
    device = dax.device()
    device.replace("a", b"1")
    with pytest.raises(CapacityError, match="2 parts"):
        device.replace("long" * 300_000, b"2")
    assert contents(device) == {"a": b"1"}
    device.unlock()


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
    deaths = 0
    for fraction in (0.0, 0.4, 1.0):
        for stores in range(1000):
            dax = Emulated(tmp_path / f"{fraction}-{stores}", 4 * MIB)
            state, after = die_after(stores, fraction, dax, monkeypatch)
            if after is None:
                break
            deaths += 1
            assert contents(dax.device()) in (state, after)
            heir = dax.device()
            heir.replace("heir", b"H" * 6000)
            heir.unlock()
            left = contents(dax.device())
            assert left.pop("heir") == b"H" * 6000
            assert left in (state, after)
            dax.node.unlink()
    assert deaths > 3 * 2 * len(STEPS)


def test_reader_at_any_store_sees_the_state_before_or_after(dax: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = dax.device(), dax.device()
    put, before = MappedNode.put, {}
    seen: list[dict[str, bytes]] = []

    def watched_put(self: MappedNode, offset: int, data: bytes) -> None:
        put(self, offset, data[: 0 if len(data) == 8 else len(data) // 2])  # an aligned word is stored at once
        seen.append(contents(reader))
        put(self, offset, data)
        seen.append(contents(reader))

    monkeypatch.setattr(MappedNode, "put", watched_put)
    for step, after in STEPS:
        step(writer)
        assert seen
        assert all(state in (before, after) for state in seen)
        assert contents(reader) == after
        before = after
        seen.clear()
    writer.unlock()


def die_after(
    stores: int, fraction: float, dax: Emulated, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], dict[str, bytes] | None]:
    """Run `STEPS` up to a death within one store; the states before and after the step that died, if one did."""
    device, left = dax.device(), stores
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


def test_table_on_the_device_is_as_documented(dax: Emulated) -> None:
    device = dax.device()
    device.replace("a", b"12345")
    device.open("b", writable=True, capacity=3 * MIB).reserve(7)
    device.unlock()
    assert dax.peek(0, 8) == b"WBDAX 1\n"
    found = {}
    for at in COPIES:
        generation, length, checksum = struct.unpack("<QII", dax.peek(at, 16))
        text = dax.peek(at + 16, length)
        assert zlib.crc32(dax.peek(at, 12) + text) == checksum
        found[generation] = json.loads(text)
    assert found == {
        3: {"a": [2 * MIB, 4096, 5], "b": [4 * MIB, 3 * MIB, 0]},
        4: {"a": [2 * MIB, 4096, 5], "b": [4 * MIB, 3 * MIB, 7]},
    }


@pytest.mark.parametrize("inside", [0, 8, 12, 20])  # generation, length, checksum, text
def test_damaged_newer_table_falls_back_to_the_other(inside: int, dax: Emulated) -> None:
    device = dax.device()
    for number in range(5):  # generation 1 is the empty table, so generation 6 is the newest
        device.replace(f"a{number}", bytes([number]))
    device.unlock()
    dax.overwrite(COPIES[0] + inside, b"\xee")
    device = dax.device()
    assert list(device.sizes()) == ["a0", "a1", "a2", "a3"]
    device.replace("new", b"5")
    device.unlock()
    assert list(dax.device().sizes()) == ["a0", "a1", "a2", "a3", "new"]


def test_two_damaged_tables_are_corrupt_and_not_overwritten(dax: Emulated) -> None:
    with RowLog(dax.device()) as log:
        log.create(10)
    for at in COPIES:
        dax.overwrite(at + 20, b"\xee")
    before = dax.peek(0, AREA)
    for read_only in (True, False):
        with pytest.raises(CorruptError, match="both copies"):
            RowLog(dax.device(), read_only=read_only)
    assert dax.peek(0, AREA) == before
    dax.device(erase=True).open("a", writable=True)


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
def test_lying_table_is_corrupt(lie: str, dax: Emulated) -> None:
    plant(dax, json.dumps(LIES[lie]).encode())
    with pytest.raises(CorruptError):
        dax.device().sizes()
    with pytest.raises(CorruptError):
        dax.device().lock()


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 10_000 + b"}"])
def test_table_that_is_no_json_is_corrupt(text: bytes, dax: Emulated) -> None:
    plant(dax, text)
    with pytest.raises(CorruptError):
        dax.device().sizes()


def plant(dax: Emulated, text: bytes) -> None:
    """Write a table with a right checksum, newer than any."""
    head = struct.pack("<QI", 2**40, len(text))
    dax.overwrite(0, b"WBDAX 1\n")
    dax.overwrite(COPIES[0], head + struct.pack("<I", zlib.crc32(head + text)) + text)

import struct
import zlib
from pathlib import Path

import pytest
import torch

from weightbank.errors import CapacityError
from weightbank.store.media import Directory
from weightbank.store.memory import Memory
from weightbank.store.slots import MomentSlots


def state(count: int) -> tuple[int, int, torch.Tensor, torch.Tensor]:
    return count, 3 * count, torch.full((5,), float(count)), torch.arange(5.0) + count


def equal(found: object, count: int) -> bool:
    assert isinstance(found, tuple)
    expected = state(count)
    return bool(found[:2] == expected[:2] and torch.equal(found[2], expected[2]) and torch.equal(found[3], expected[3]))


def test_newest_state_up_to_a_count_is_found_again(tmp_path: Path) -> None:
    for medium in (Directory(tmp_path), Memory()):
        slots = MomentSlots(medium, 5)
        assert slots.newest(100) is None
        for count in (3, 7, 12):
            slots.save(*state(count), durable=True)
        for again in (slots, MomentSlots(medium, 5)):
            assert equal(again.newest(100), 12)
            assert equal(again.newest(11), 7)
            assert again.newest(6) is None  # two are kept
        assert MomentSlots(medium, 6).newest(100) is None  # of other weights


def test_state_without_scatter_comes_back_so(tmp_path: Path) -> None:
    slots = MomentSlots(Directory(tmp_path), 5)
    slots.save(4, 8, torch.ones(5), None, durable=False)
    found = slots.newest(4)
    assert found is not None
    assert found[3] is None


def test_older_slot_is_the_one_that_is_overwritten_also_after_reopening(tmp_path: Path) -> None:
    for count in (1, 2, 3, 4, 5):
        slots = MomentSlots(Directory(tmp_path), 5)
        slots.newest(100)
        slots.save(*state(count), durable=False)
        if count > 1:
            assert equal(MomentSlots(Directory(tmp_path), 5).newest(count - 1), count - 1)


@pytest.mark.parametrize("size", [0, 63, 64, 4096, 4096 + 39])
def test_cut_slot_gives_way_to_the_other(tmp_path: Path, size: int) -> None:
    slots = MomentSlots(Directory(tmp_path), 5)
    slots.save(*state(1), durable=False)
    slots.save(*state(2), durable=False)
    with open(tmp_path / "moments-b.bin", "r+b") as file:
        file.truncate(size)
    assert equal(slots.newest(100), 1)


def test_forgotten_states_do_not_come_back(tmp_path: Path) -> None:
    slots = MomentSlots(Directory(tmp_path), 5)
    slots.save(*state(1), durable=False)
    slots.save(*state(2), durable=False)
    slots.forget_after(1)
    assert equal(slots.newest(100), 1)
    slots.forget_after(0)
    assert slots.newest(100) is None


def test_reserved_slots_hold_no_state_and_saving_takes_no_more_room(tmp_path: Path) -> None:
    slots = MomentSlots(Directory(tmp_path), 5)
    slots.reserve()
    before = Directory(tmp_path).sizes()
    assert slots.newest(100) is None
    slots.save(*state(1), durable=False)
    slots.reserve()
    slots.save(*state(2), durable=False)
    assert equal(slots.newest(1), 1)
    assert Directory(tmp_path).sizes() == before


def test_no_room_for_slots_is_a_capacity_error() -> None:
    with pytest.raises(CapacityError, match="no memory"):
        MomentSlots(Memory(), 2**60).reserve()


def test_slot_is_a_header_and_two_vectors(tmp_path: Path) -> None:
    slots = MomentSlots(Directory(tmp_path), 5)
    slots.save(*state(7), durable=False)
    data = (tmp_path / "moments-a.bin").read_bytes()
    mean, scatter = state(7)[2].numpy().tobytes(), state(7)[3].numpy().tobytes()
    assert data[4096:] == mean + scatter
    head = struct.pack("<4sHHQQqII20x", b"WBMO", 1, 1, 7, 5, 21, zlib.crc32(mean), zlib.crc32(scatter))
    assert data[:64] == head + zlib.crc32(head).to_bytes(4, "little")

from pathlib import Path

import pytest
import torch

from weightbank.errors import CorruptError, LayoutError
from weightbank.store.media import Directory
from weightbank.store.reference import read_reference, write_reference


def test_reference_comes_back_in_float32(tmp_path: Path) -> None:
    place = Directory(tmp_path)
    assert read_reference(place, 5) is None
    for reference in (torch.arange(5.0), torch.arange(10.0, dtype=torch.float64)[::2]):
        write_reference(place, reference, 5)
        again = read_reference(place, 5)
        assert again is not None
        assert torch.equal(again, reference.float())
    with pytest.raises(LayoutError, match=r"shape \(4,\) came; this log has rows of \(5,\)"):
        write_reference(place, torch.ones(4), 5)


def test_damaged_reference_is_reported_wherever_the_damage_is(tmp_path: Path) -> None:
    place, file = Directory(tmp_path), tmp_path / "reference.bin"
    write_reference(place, torch.arange(5.0), 5)
    whole = file.read_bytes()
    damaged = [bytes([*whole[:n], whole[n] ^ 1, *whole[n + 1 :]]) for n in range(len(whole))]
    damaged += [whole[:n] for n in range(len(whole))] + [whole + b"\0", b"WBRF 1 5".ljust(64) + whole[64:]]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(CorruptError, match="reference.bin is damaged"):
            read_reference(place, 5)
    file.write_bytes(whole)
    with pytest.raises(CorruptError):
        read_reference(place, 6)

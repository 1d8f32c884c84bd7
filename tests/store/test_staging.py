import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CapacityError
from weightbank.store import RowLog
from weightbank.store.media import Directory
from weightbank.store.records import Journal, Record
from weightbank.store.segments import Geometry, Segments
from weightbank.store.staging import SLOTS, Staging, recover_staged


def open_segments(where: Path) -> Segments:
    return Segments(Directory(where), Geometry.of(10, None), True)


def staged(path: Path, *sequences: int, sealed: bool = True) -> None:
    """A staging file with rows of these numbers in its slots."""
    staging = Staging(path, 10)
    for slot, sequence in enumerate(sequences):
        row = np.full(10, sequence, np.uint8)
        staging.payload(slot)[:] = row
        if sealed:
            staging.seal(slot, Record(sequence, 5 * sequence, sequence, crc32(row)))


@pytest.mark.parametrize(
    ("known", "sequences", "expected"),
    [
        (0, (0, 1, 2, 3), 4),
        (0, (2, 1, 3, 0), 4),  # in any slot
        (2, (2, 1, 3, 0), 4),  # some are stored already
        (4, (2, 1, 3, 0), 4),  # all are
        (0, (1, 2, 3, 4), 0),  # the first is missing, so none can follow
        (1, (1, 3, 4, 5), 2),  # up to the first gap
        (0, (0,), 1),
    ],
)
def test_staged_rows_that_follow_are_stored_once(
    tmp_path: Path, known: int, sequences: tuple[int, ...], expected: int
) -> None:
    segments, journal = open_segments(tmp_path), Journal()
    for number in range(known):
        journal.add(Record(number, 5 * number, number, 0))
    staged(tmp_path / "staging.bin", *sequences)
    recover_staged(tmp_path / "staging.bin", segments, journal)
    assert journal.count == expected
    assert journal.steps.tolist() == [5 * number for number in range(expected)]
    out = np.empty(10, np.uint8)
    for number in range(known, expected):
        segments.read_row(number, 0, out)
        assert out.tolist() == [number] * 10
    assert not (tmp_path / "staging.bin").exists()


def test_slot_that_was_not_sealed_is_not_a_row(tmp_path: Path) -> None:
    segments, journal = open_segments(tmp_path), Journal()
    staged(tmp_path / "staging.bin", 0, sealed=False)
    recover_staged(tmp_path / "staging.bin", segments, journal)
    assert journal.count == 0


def test_slot_that_is_just_filled_anew_is_no_row(tmp_path: Path) -> None:
    segments, journal = open_segments(tmp_path), Journal()
    staged(tmp_path / "staging.bin", 0, 1)
    with open(tmp_path / "staging.bin", "r+b") as file:
        file.seek(8192 + 4096)
        file.write(b"half")
    recover_staged(tmp_path / "staging.bin", segments, journal)
    assert journal.count == 1


def test_no_room_for_staging_leaves_no_file_and_takes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate

    def fail(descriptor: int, offset: int, length: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "staging.bin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, length)

    with RowLog(tmp_path / "log") as log:
        log.create(100)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", fail)
            with pytest.raises(CapacityError, match=f"staging.bin: no room for {SLOTS * 8192:,} bytes"):
                log.append(torch.ones(100))
        assert not (tmp_path / "log" / "staging.bin").exists()
        assert log.count == 0
        log.append(torch.ones(100))
    assert RowLog(tmp_path / "log", read_only=True).count == 1

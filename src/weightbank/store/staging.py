"""Rows on their way to the medium: buffers in a mapped file, so that they outlive the process that filled them."""

import mmap
import os
from pathlib import Path

import numpy as np
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError
from weightbank.store.media import Bytes, FileBlob, allocate, errors_named
from weightbank.store.records import RECORD_BYTES, Journal, Record
from weightbank.store.segments import STRIDE, Segments

SLOTS = 4


class Staging:
    """`SLOTS` buffers of one record and one row each, in a new mapped file or (path None) in plain memory.

    Raises `CapacityError` when there is no room for the file, and leaves none then.
    """

    def __init__(self, path: Path | None, row_bytes: int) -> None:
        self._path, self._row_bytes, self._stride = path, row_bytes, _stride(row_bytes)
        total = SLOTS * self._stride
        with errors_named(str(path or "staging in memory"), total):
            if path is None:
                self._map = mmap.mmap(-1, total)
            else:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
                try:
                    os.posix_fallocate(descriptor, 0, total)
                    self._map = mmap.mmap(descriptor, total)
                except BaseException:
                    path.unlink()
                    raise
                finally:
                    os.close(descriptor)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def payload(self, slot: int) -> Bytes:
        """The row's bytes in one slot, to be written in place; while they do not match the record, there is no row."""
        start = slot * self._stride + STRIDE
        return self._bytes[start : start + self._row_bytes]

    def seal(self, slot: int, record: Record) -> None:
        """Put the record beside the finished row: from here on the row outlives this process."""
        start = slot * self._stride
        self._bytes[start : start + RECORD_BYTES] = np.frombuffer(record.pack(), np.uint8)

    def discard(self) -> None:
        """Remove the file: everything in it has been stored."""
        if self._path is not None:
            with errors_named(str(self._path)):
                self._path.unlink(missing_ok=True)


def recover_staged(path: Path, segments: Segments, journal: Journal) -> None:
    """Store the finished rows that a killed writer left in its staging file, then remove it; one row in memory."""
    row_bytes = segments.geometry.row_bytes
    file = FileBlob(path, writable=False)
    try:
        for record, start in _sealed(file, _stride(row_bytes)):
            if record.sequence != journal.count or record.slot != segments.geometry.slot(record.sequence):
                continue
            if file.size < start + STRIDE + row_bytes:
                continue
            row = allocate(row_bytes, str(path))
            file.read_into(start + STRIDE, row)
            if crc32(row) == record.row_crc:
                segments.reserve(record.sequence)
                segments.store(record, row)
                journal.add(record)
    finally:
        file.close()
    segments.sync()
    segments.medium.remove(path.name)


def _sealed(file: FileBlob, stride: int) -> list[tuple[Record, int]]:
    """The records in a staging file and where their slots begin, oldest first."""
    found: list[tuple[Record, int]] = []
    for start in range(0, SLOTS * stride, stride):
        head = np.empty(RECORD_BYTES, np.uint8)
        try:
            file.read_into(start, head)
            record = Record.unpack(head.tobytes())
        except CorruptError:
            record = None
        if record is not None:
            found.append((record, start))
    return sorted(found, key=lambda pair: pair[0].sequence)


def _stride(row_bytes: int) -> int:
    return STRIDE + -(-row_bytes // STRIDE) * STRIDE

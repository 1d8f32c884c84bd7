"""Where each row of a log lies: preallocated segments of 4 KiB-aligned rows, and the commit log beside them."""

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from weightbank.errors import CapacityError, CorruptError
from weightbank.store.media import Blob, Bytes, Medium
from weightbank.store.records import RECORD_BYTES, Journal, Record

STRIDE = 4096
COMMITS = "commits.bin"
_SEGMENT_BYTES, _SEGMENT_ROWS, _SEGMENT_LIMIT = 16 << 20, 64, 1 << 30
_JOURNAL_STEP = 1024 * RECORD_BYTES
_OPEN_FILES = 64


@dataclass(frozen=True)
class Geometry:
    """Sizes of a log on a medium: bytes per row as encoded, slots of a ring (None: it grows), rows per segment."""

    row_bytes: int
    slots: int | None
    segment_rows: int

    @classmethod
    def of(cls, row_bytes: int, slots: int | None) -> "Geometry":
        """Segments of 64 rows or 16 MiB, whichever is more, but of at most 1 GiB where rows allow it."""
        stride = -(-row_bytes // STRIDE) * STRIDE
        rows = min(max(_SEGMENT_ROWS, _SEGMENT_BYTES // stride), max(1, _SEGMENT_LIMIT // stride))
        return cls(row_bytes, slots, rows if slots is None else min(rows, slots))

    @property
    def stride(self) -> int:
        """Bytes from one row to the next: `row_bytes` rounded up to 4 KiB."""
        return -(-self.row_bytes // STRIDE) * STRIDE

    def slot(self, sequence: int) -> int:
        """Where row number `sequence` lies."""
        return sequence if self.slots is None else sequence % self.slots

    @property
    def plausible(self) -> bool:
        """Whether `of` makes segments of such a size."""
        return self.segment_rows == 1 or 0 < self.segment_rows * self.stride <= _SEGMENT_LIMIT

    def place(self, sequence: int) -> tuple[int, int]:
        """The segment in which row number `sequence` lies, and where that row begins in it, in bytes."""
        segment, inside = divmod(self.slot(sequence), self.segment_rows)
        return segment, inside * self.stride

    def segment_bytes(self, segment: int) -> int:
        """Size of a segment; the last one of a ring may be shorter."""
        rows = self.segment_rows
        if self.slots is not None:
            rows = min(rows, self.slots - segment * self.segment_rows)
        return rows * self.stride

    def payload(self, rows: int) -> int:
        """Bytes on disk for `rows` rows and their records."""
        held = rows if self.slots is None else min(rows, self.slots)
        return held * self.stride + rows * RECORD_BYTES


class Segments:
    """The open blobs of one log; used by the writer thread and by readers, so it keeps no reference to the log."""

    def __init__(self, medium: Medium, geometry: Geometry, writable: bool) -> None:
        self.medium, self.geometry, self.writable = medium, geometry, writable
        self._blobs: dict[int, Blob] = {}
        self._dirty: set[int] = set()
        self._lock = threading.Lock()
        capacity = 0
        if medium.limit is not None:
            capacity = 2 * RECORD_BYTES * (medium.limit // geometry.stride + 1)
        self.journal = medium.open(COMMITS, writable=writable, capacity=capacity)

    def reserve(self, sequence: int) -> None:
        """Make real space for row `sequence` and its record, or raise `CapacityError` before anything is written.

        Space comes by the segment; when there is no room for a whole one any more, row by row.
        """
        end = (sequence + 1) * RECORD_BYTES
        if end >= self.journal.size:  # a log that is in use always ends in a blank record
            self.journal.reserve((end // _JOURNAL_STEP + 1) * _JOURNAL_STEP)
        segment, start = self.geometry.place(sequence)
        try:
            blob = self._blob(segment, create=True)
            if blob.size < start + self.geometry.stride:
                try:
                    blob.reserve(self.geometry.segment_bytes(segment))
                except CapacityError:
                    blob.reserve(start + self.geometry.stride)
        except CapacityError:
            self._drop_empty(segment)
            raise

    def store(self, record: Record, row: Bytes) -> None:
        """Write one row, then the record that makes it count."""
        segment, start = self.geometry.place(record.sequence)
        self._blob(segment).write(start, row)
        self._dirty.add(segment)
        self.journal.write(record.sequence * RECORD_BYTES, record.pack())

    def sync(self) -> None:
        """Make what was stored durable: rows first, then the records that name them."""
        while self._dirty:
            self._blob(self._dirty.pop()).sync()
        self.journal.sync()

    def sync_all(self, count: int) -> None:
        """Make all `count` rows durable, those stored by earlier processes included."""
        slots = count if self.geometry.slots is None else min(count, self.geometry.slots)
        self._dirty.update(range(-(-slots // self.geometry.segment_rows)))
        self.sync()

    def check_there(self, sequence: int) -> None:
        """Raise `CorruptError` unless the medium holds all bytes of a row; allocates nothing."""
        segment, start = self.geometry.place(sequence)
        blob = self._blob(segment)
        if blob.size < start + self.geometry.row_bytes:
            raise CorruptError(
                f"{self.medium!r}: {_name(segment)} ends at byte {blob.size:,}, before the end of row {sequence}"
            )

    def read_row(self, sequence: int, offset: int, out: Bytes) -> None:
        """The bytes of one row from `offset` on."""
        segment, start = self.geometry.place(sequence)
        self._blob(segment).read_into(start + offset, out)

    def read_span(self, first: int, offset: int, out: UInt8[np.ndarray, "R B"], step: int = 1) -> None:
        """Bytes from `offset` on of rows first, first + step, ...: one row of `out` each."""
        rows, done = out.shape[0], 0
        while done < rows:
            slot = self.geometry.slot(first + done * step)
            segment, inside = divmod(slot, self.geometry.segment_rows)
            room = self.geometry.segment_rows
            if self.geometry.slots is not None:
                room = min(room, self.geometry.slots - segment * self.geometry.segment_rows)
            run = min(rows - done, -(-(room - inside) // step))
            start = inside * self.geometry.stride + offset
            self._blob(segment).read_strided(start, step * self.geometry.stride, out[done : done + run])
            done += run

    def truncate(self, journal: Journal, count: int, before: int, keep: int | None) -> None:
        """Take the rows from `count` up to `before` off the log, in one step, and give back segments behind them.

        In a ring, some rows that would now be among the newest `keep` may be overwritten: they are marked as gone.
        """
        slots, rows = self.geometry.slots, self.geometry.segment_rows
        if slots is not None and keep is not None:
            for record in journal.lose(max(0, count - keep), min(count, before - slots)):
                self.journal.write(record.sequence * RECORD_BYTES, record.pack())
            self.journal.sync()
        self.journal.trim(count * RECORD_BYTES)
        self.journal.sync()
        if slots is None:
            for segment in range(-(-count // rows), -(-before // rows)):
                with self._lock:
                    self._blobs.pop(segment, None)
                self._dirty.discard(segment)
                self.medium.remove(_name(segment))
        journal.cut(count)

    def trim(self, count: int) -> None:
        """Give back preallocated space behind the last of `count` rows."""
        self.journal.trim(count * RECORD_BYTES)
        if self.geometry.slots is None or count < self.geometry.slots:
            segment, start = self.geometry.place(count)
            if segment in self._blobs:
                self._blobs[segment].trim(start)
                self._drop_empty(segment)

    def release(self) -> None:
        """Close the segments; they are opened again when needed."""
        with self._lock:
            for blob in self._blobs.values():
                blob.close()
            self._blobs.clear()

    def close(self) -> None:
        """Release all handles."""
        self.release()
        self.journal.close()

    def _blob(self, segment: int, *, create: bool = False) -> Blob:
        with self._lock:
            blob = self._blobs.get(segment)
            if blob is None:
                name = _name(segment)
                if not create and not self.medium.exists(name):
                    raise CorruptError(f"{self.medium!r}: {name} is missing")
                if self.medium.staged and len(self._blobs) >= _OPEN_FILES:  # it closes when nobody uses it any more
                    self._blobs.pop(next(iter(self._blobs)))
                capacity = self.geometry.segment_bytes(segment)
                blob = self._blobs[segment] = self.medium.open(name, writable=self.writable, capacity=capacity)
        return blob

    def _drop_empty(self, segment: int) -> None:
        with self._lock:
            blob = self._blobs.get(segment)
            if blob is not None and blob.size == 0:
                del self._blobs[segment]
                blob.close()
                self.medium.remove(_name(segment))


def _name(segment: int) -> str:
    return f"rows-{segment:06d}.bin"

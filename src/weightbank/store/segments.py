"""Where each row of a log lies: preallocated segments of 4 KiB-aligned rows, and the commit log beside them."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from weightbank.errors import CapacityError
from weightbank.store.media import Blob, Bytes, Medium
from weightbank.store.records import RECORD_BYTES, Record

STRIDE = 4096
_SEGMENT_BYTES, _SEGMENT_ROWS, _SEGMENT_LIMIT = 16 << 20, 64, 1 << 30
_JOURNAL_STEP = 1024 * RECORD_BYTES


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


@dataclass
class Segments:
    """The open blobs of one log; used by the writer thread and by readers, so it keeps no reference to the log."""

    medium: Medium
    geometry: Geometry
    writable: bool
    blobs: dict[int, Blob] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        capacity = 0
        if self.medium.limit is not None:
            capacity = 2 * RECORD_BYTES * (self.medium.limit // self.geometry.stride + 1)
        self.journal = self.medium.open("commits.bin", writable=self.writable, capacity=capacity)

    def reserve(self, sequence: int) -> None:
        """Make real space for row `sequence` and its record, or raise `CapacityError` before anything is written."""
        segment = self.geometry.slot(sequence) // self.geometry.segment_rows
        end = (sequence + 1) * RECORD_BYTES
        if end > self.journal.size:
            self.journal.reserve(-(-end // _JOURNAL_STEP) * _JOURNAL_STEP)
        wanted = self.geometry.segment_bytes(segment)
        try:
            blob = self._blob(segment)
            if blob.size < wanted:
                blob.reserve(wanted)
        except CapacityError:
            self.drop(segment)
            raise

    def store(self, record: Record, row: Bytes) -> None:
        """Write one row, then the record that makes it count."""
        segment, inside = divmod(record.slot, self.geometry.segment_rows)
        self._blob(segment).write(inside * self.geometry.stride, row)
        self.journal.write(record.sequence * RECORD_BYTES, record.pack())
        self.dirty.add(segment)

    def sync(self) -> None:
        """Make what was stored durable: rows first, then the records that name them."""
        while self.dirty:
            self._blob(self.dirty.pop()).sync()
        self.journal.sync()

    def read_row(self, sequence: int, out: Bytes) -> None:
        """The bytes of one row, shape (row_bytes,)."""
        segment, inside = divmod(self.geometry.slot(sequence), self.geometry.segment_rows)
        self._blob(segment).read_into(inside * self.geometry.stride, out)

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

    def forget_after(self, count: int) -> None:
        """Erase the records from `count` on, so that rows written next take their places."""
        end = min(self.journal.size, -(-self.journal.size // RECORD_BYTES) * RECORD_BYTES)
        for start in range(count * RECORD_BYTES, end, _JOURNAL_STEP):
            self.journal.write(start, bytes(min(_JOURNAL_STEP, end - start)))
        self.journal.sync()

    def trim(self, count: int) -> None:
        """Give back preallocated space behind the last of `count` rows."""
        self.journal.trim(count * RECORD_BYTES)
        if self.geometry.slots is None or count < self.geometry.slots:
            segment, inside = divmod(count, self.geometry.segment_rows)
            if segment in self.blobs:
                self.blobs[segment].trim(inside * self.geometry.stride)

    def drop(self, segment: int) -> None:
        """Close a segment that got no space, and remove it if it is empty."""
        blob = self.blobs.pop(segment, None)
        if blob is not None:
            empty = blob.size == 0
            blob.close()
            if empty:
                self.medium.remove(self._name(segment))

    def close(self) -> None:
        """Release all handles."""
        for blob in self.blobs.values():
            blob.close()
        self.blobs.clear()
        self.journal.close()

    def _blob(self, segment: int) -> Blob:
        blob = self.blobs.get(segment)
        if blob is None:
            bytes_wanted = self.geometry.segment_bytes(segment)
            blob = self.medium.open(self._name(segment), writable=self.writable, capacity=bytes_wanted)
            self.blobs[segment] = blob
        return blob

    @staticmethod
    def _name(segment: int) -> str:
        return f"rows-{segment:06d}.bin"

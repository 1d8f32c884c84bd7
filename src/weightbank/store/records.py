"""The commit log: one 64-byte record with checksums for every row that was written whole.

Little-endian: magic `WBRC`, version u16, kind u16, sequence u64, step i64, slot u64, generation u64, crc32 of the row
u32, 16 zero bytes, crc32 of the 60 bytes before u32. A record is written after its row, so what has a record is whole.
Slot 2^64 - 1 says that the row has left a ring for good, although it is not yet older than the ring is long.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt32
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError
from weightbank.store.media import Blob, Bytes

RECORD_BYTES = 64
ITERATE, SKETCH = 0, 1
GONE = 2**64 - 1

_STRUCT = struct.Struct("<4sHHQqQQI16xI")
assert _STRUCT.size == RECORD_BYTES
_MAGIC, _VERSION = b"WBRC", 1
_CHUNK, _LOOK_AHEAD = 16_384, 1 << 20


@dataclass(frozen=True)
class Record:
    """What is known about one row: its place in the sequence, the training step, where it lies, its checksum."""

    sequence: int
    step: int
    slot: int
    row_crc: int
    kind: int = ITERATE
    generation: int = 0

    def pack(self) -> bytes:
        """The record as 64 bytes."""
        data = _STRUCT.pack(
            _MAGIC, _VERSION, self.kind, self.sequence, self.step, self.slot, self.generation, self.row_crc, 0
        )
        return data[:-4] + crc32(data[:-4]).to_bytes(4, "little")

    @classmethod
    def unpack(cls, data: bytes) -> "Record | None":
        """The record in 64 bytes, or None if they are not one."""
        if len(data) != RECORD_BYTES or data[:4] != _MAGIC or crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        _, version, kind, sequence, step, slot, generation, row_crc, _ = _STRUCT.unpack(data)
        if version != _VERSION:
            raise CorruptError(f"a commit record of version {version} came; this library reads version {_VERSION}")
        return cls(sequence, step, slot, row_crc, kind, generation)


class Journal:
    """The valid prefix of a commit log, kept as compact columns: 28 bytes of memory per row."""

    def __init__(self) -> None:
        self.count = 0
        self.frozen = False
        self.floor = 0
        self._columns = np.zeros((3, 1024), np.int64)
        self._crcs = np.zeros(1024, np.uint32)

    @property
    def steps(self) -> Int64[np.ndarray, " K"]:
        """Training step of each row."""
        return self._columns[0, : self.count]

    @property
    def kinds(self) -> Int64[np.ndarray, " K"]:
        """`ITERATE` or `SKETCH`."""
        return self._columns[1, : self.count]

    @property
    def generations(self) -> Int64[np.ndarray, " K"]:
        """The sketch generation a row belongs to."""
        return self._columns[2, : self.count]

    @property
    def crcs(self) -> UInt32[np.ndarray, " K"]:
        """Checksum of each row's bytes."""
        return self._crcs[: self.count]

    def first(self, keep: int | None) -> int:
        """The number of the oldest row there is, in a log of all rows or a ring of the newest `keep`."""
        return 0 if keep is None else max(self.floor, self.count - keep)

    def add(self, record: Record) -> None:
        """Append one record, which must be the next of the sequence."""
        assert record.sequence == self.count
        if self.count == self._crcs.size:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
            self._crcs = np.concatenate([self._crcs, np.zeros_like(self._crcs)])
        self._columns[:, self.count] = record.step, record.kind, record.generation
        self._crcs[self.count] = record.row_crc
        self.count += 1
        if record.slot == GONE:
            self.floor = self.count

    def cut(self, count: int) -> None:
        """Forget all but the first `count` records."""
        self.count = min(self.count, count)
        self.floor = min(self.floor, self.count)

    def lose(self, start: int, stop: int) -> Iterator[Record]:
        """The records of rows that have left the ring for good, marked so, to be written over the old ones."""
        for number in range(start, stop):
            step, kind, generation = (int(value) for value in self._columns[:, number])
            yield Record(number, step, GONE, int(self._crcs[number]), kind, generation)
        self.floor = max(self.floor, stop)

    def scan(self, blob: Blob, slots: int | None) -> None:
        """Read on from the records already known, up to the first that is not whole, in bounded memory.

        `slots` is the ring's size, None for a log that never wraps: a record must lie where its sequence says.
        """
        for start, part in _parts(blob, self.count, blob.size // RECORD_BYTES):
            for index in range(len(part) // RECORD_BYTES):
                record = Record.unpack(part[index * RECORD_BYTES : (index + 1) * RECORD_BYTES].tobytes())
                wanted = self.count if slots is None else self.count % slots
                if record is None or record.sequence != start + index or record.slot not in (wanted, GONE):
                    return
                self.add(record)

    def agrees(self, blob: Blob) -> bool:
        """Whether the newest record known is still there: a writer may have truncated the log since."""
        for _, part in _parts(blob, self.count - 1, self.count):
            record = Record.unpack(part.tobytes())
            return record is not None and (record.step, record.row_crc) == (self.steps[-1], self.crcs[-1])
        return self.count == 0

    def beyond(self, blob: Blob) -> tuple[bool, int]:
        """Whether the place of the next record is blank, and one past the last whole record behind it."""
        blank, last = True, self.count
        stop = -(-blob.size // RECORD_BYTES)
        for start, part in _parts(blob, self.count, min(stop, self.count + _LOOK_AHEAD)):
            blank = blank and not (start == self.count and part[:RECORD_BYTES].any())
            whole = part[: len(part) // RECORD_BYTES * RECORD_BYTES].reshape(-1, RECORD_BYTES)
            for index in np.flatnonzero((whole[:, :4] == np.frombuffer(_MAGIC, np.uint8)).all(axis=1)):
                record = Record.unpack(whole[index].tobytes())
                if record is not None and record.sequence == start + index:
                    last = record.sequence + 1
        return blank, last


def _parts(blob: Blob, start: int, stop: int) -> Iterator[tuple[int, Bytes]]:
    """Records `start` to `stop` as bytes, in pieces, with the number of the first; ends early if the blob does."""
    buffer = np.empty(min(_CHUNK, max(0, stop - start)) * RECORD_BYTES, np.uint8)
    while 0 <= start < stop:
        part: Bytes = buffer[: min(buffer.size, max(0, min(stop * RECORD_BYTES, blob.size) - start * RECORD_BYTES))]
        if not part.size:
            return
        try:
            blob.read_into(start * RECORD_BYTES, part)
        except CorruptError:  # it has become shorter just now
            return
        yield start, part
        start += _CHUNK

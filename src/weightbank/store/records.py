"""The commit log: one 64-byte record with checksums for every row that was written whole.

Little-endian: magic `WBRC`, version u16, kind u16, sequence u64, step i64, slot u64, generation u64, crc32 of the row
u32, 16 zero bytes, crc32 of the 60 bytes before u32. A record is written after its row, so what has a record is whole.
"""

import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt32
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError
from weightbank.store.media import Blob, Bytes

RECORD_BYTES = 64
ITERATE, SKETCH = 0, 1

_STRUCT = struct.Struct("<4sHHQqQQI16xI")
assert _STRUCT.size == RECORD_BYTES
_MAGIC, _VERSION = b"WBRC", 1
_CHUNK = 16_384


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
        self._columns = np.zeros((4, 1024), np.int64)
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

    def add(self, record: Record) -> None:
        """Append one record, which must be the next of the sequence."""
        assert record.sequence == self.count
        if self.count == self._crcs.size:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
            self._crcs = np.concatenate([self._crcs, np.zeros_like(self._crcs)])
        self._columns[:3, self.count] = record.step, record.kind, record.generation
        self._crcs[self.count] = record.row_crc
        self.count += 1

    def cut(self, count: int) -> None:
        """Forget all but the first `count` records."""
        self.count = min(self.count, count)

    def scan(self, blob: Blob, slots: int | None) -> None:
        """Read on from the records already known, up to the first that is not whole, in bounded memory.

        `slots` is the ring's size, None for a log that never wraps: a record must lie where its sequence says.
        """
        size = blob.size
        buffer = np.empty(_CHUNK * RECORD_BYTES, np.uint8)
        while (self.count + 1) * RECORD_BYTES <= size:
            here = min(_CHUNK, size // RECORD_BYTES - self.count)
            part: Bytes = buffer[: here * RECORD_BYTES]
            blob.read_into(self.count * RECORD_BYTES, part)
            for start in range(0, part.size, RECORD_BYTES):
                record = Record.unpack(part[start : start + RECORD_BYTES].tobytes())
                wanted = self.count if slots is None else self.count % slots
                if record is None or record.sequence != self.count or record.slot != wanted:
                    return
                self.add(record)

"""Write rows behind the training loop: a few staging slots, one thread, group commit, back-pressure.

The staging slots are a mapped file, so a row handed over is in the kernel's hands at once and survives `kill -9` before
the thread has moved it to its segment; the next writer to open the log moves it (`recover`).
"""

import mmap
import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from zlib_ng.zlib_ng import crc32

from weightbank.errors import StoreError
from weightbank.store.media import Bytes, full_disk_named
from weightbank.store.records import RECORD_BYTES, Record
from weightbank.store.segments import STRIDE, Segments

_IDLE_SECONDS = 0.5


class Staging:
    """`slots` buffers of one record and one row each, in a mapped file or (path None) in plain memory."""

    def __init__(self, path: Path | None, slots: int, row_bytes: int) -> None:
        self._path, self._slots, self._row_bytes = path, slots, row_bytes
        self._stride = STRIDE + -(-row_bytes // STRIDE) * STRIDE
        total = slots * self._stride
        if path is None:
            self._map = mmap.mmap(-1, total)
        else:
            with full_disk_named(str(path), total):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    os.posix_fallocate(descriptor, 0, total)
                    self._map = mmap.mmap(descriptor, total)
                finally:
                    os.close(descriptor)
        self._bytes = np.frombuffer(self._map, np.uint8)

    def payload(self, slot: int) -> Bytes:
        """The row's bytes in one slot, to be written in place."""
        start = slot * self._stride + STRIDE
        return self._bytes[start : start + self._row_bytes]

    def seal(self, slot: int, record: Record) -> None:
        """Put the record beside the finished row: from here on the row outlives this process."""
        start = slot * self._stride
        self._bytes[start : start + RECORD_BYTES] = np.frombuffer(record.pack(), np.uint8)

    def unseal(self, slot: int) -> None:
        """Mark a slot as having no finished row before it is filled anew."""
        start = slot * self._stride
        self._bytes[start : start + 4] = 0

    def found(self) -> list[tuple[Record, int]]:
        """Finished rows and their slots, oldest first; a row that does not match its checksum is not finished."""
        sealed: list[tuple[Record, int]] = []
        for slot in range(self._slots):
            start = slot * self._stride
            record = Record.unpack(self._bytes[start : start + RECORD_BYTES].tobytes())
            if record is not None and crc32(self.payload(slot)) == record.row_crc:
                sealed.append((record, slot))
        return sorted(sealed, key=lambda pair: pair[0].sequence)

    def discard(self) -> None:
        """Remove the file: everything in it has been stored."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Marker:
    """A request in the queue: say when everything before it is stored (and durable)."""

    durable: bool
    done: threading.Event


class Writer:
    """The thread that moves staged rows into their segments, in order."""

    def __init__(self, segments: Segments, staging: Staging, slots: int, *, group: int | None, count: int) -> None:
        self._segments, self._staging, self._group = segments, staging, group
        self.stored = self.durable = count
        self._error: StoreError | None = None
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, Record] | _Marker | None] = queue.SimpleQueue()
        for slot in range(slots):
            self._free.put(slot)
        self._thread = threading.Thread(target=self._run, name="weightbank-writer", daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, Bytes]:
        """A free slot and its row buffer; waits while the disk is slower than the caller."""
        self.check()
        slot = self._free.get()
        try:
            self.check()
        except StoreError:
            self._free.put(slot)
            raise
        self._staging.unseal(slot)
        return slot, self._staging.payload(slot)

    def give_back(self, slot: int) -> None:
        """Return a slot that was not filled."""
        self._free.put(slot)

    def submit(self, slot: int, record: Record) -> None:
        """Hand over a filled slot."""
        self._staging.seal(slot, record)
        self._full.put((slot, record))

    def wait(self, *, durable: bool = False) -> None:
        """Return when everything submitted is stored, and on stable storage if `durable`."""
        self.check()
        marker = _Marker(durable, threading.Event())
        self._full.put(marker)
        marker.done.wait()
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Store what was submitted and end the thread; errors are kept for `check`."""
        if self._thread.is_alive():
            self._full.put(None)
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                item = self._full.get(timeout=_IDLE_SECONDS if self._group is not None else None)
            except queue.Empty:
                item = _Marker(self._group is not None, threading.Event())
            if item is None:
                return
            if self._error is None:
                try:
                    self._work(item)
                except StoreError as error:
                    self._error = error
                except BaseException as error:
                    self._error = StoreError(f"the writer thread failed: {error!r}; what was committed is safe")
            if isinstance(item, _Marker):
                item.done.set()
            else:
                self._free.put(item[0])

    def _work(self, item: tuple[int, Record] | _Marker) -> None:
        if not isinstance(item, _Marker):
            slot, record = item
            self._segments.store(record, self._staging.payload(slot))
            self.stored = record.sequence + 1
            due = self._group is not None and self.stored - self.durable >= self._group
        else:
            due = item.durable and self.durable < self.stored
        if due:
            self._segments.sync()
            self.durable = self.stored

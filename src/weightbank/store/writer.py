"""Write rows behind the training loop: a few staging slots, one thread, group commit, back-pressure."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from weightbank.errors import StoreError
from weightbank.store.media import Bytes, allocate
from weightbank.store.records import Record
from weightbank.store.segments import Segments
from weightbank.store.staging import SLOTS, Staging

_IDLE_SECONDS = 0.5


@runtime_checkable
class Writer(Protocol):
    """What takes rows one by one, in the order of their numbers, to their places."""

    stored: int
    durable: int
    retained: int
    """The newest rows, so many of them, are still in the buffers they were made in."""

    def take(self) -> tuple[int, Bytes]:
        """A free slot and its row buffer."""
        ...

    def give_back(self, slot: int) -> None:
        """Return a slot that was not filled."""
        ...

    def submit(self, slot: int, record: Record) -> None:
        """Hand over a filled slot."""
        ...

    def wait(self, *, durable: bool = False) -> None:
        """Return when everything submitted is stored, and on stable storage if `durable`."""
        ...

    def check(self) -> None:
        """Raise what went wrong since the last row was taken, if anything did."""
        ...

    def close(self, then: Callable[[], None]) -> None:
        """Store what was submitted, then call `then`; errors are kept for `check`."""
        ...


class DirectWriter:
    """For media as fast as memory: a row is in its place when `submit` returns."""

    retained = 1

    def __init__(self, segments: Segments, *, group: int | None, count: int) -> None:
        self._segments, self._group = segments, group
        self.stored = self.durable = count
        self._buffer = allocate(segments.geometry.row_bytes, repr(segments.medium))

    def take(self) -> tuple[int, Bytes]:
        return 0, self._buffer

    def give_back(self, slot: int) -> None:
        """There is one buffer and nobody waits for it."""

    def submit(self, slot: int, record: Record) -> None:
        self._segments.store(record, self._buffer)
        self.stored = record.sequence + 1
        if self._group is not None and self.stored - self.durable >= self._group:
            self.wait(durable=True)

    def wait(self, *, durable: bool = False) -> None:
        if durable and self.durable < self.stored:
            self._segments.sync()
            self.durable = self.stored

    def check(self) -> None:
        """Errors were raised where they happened."""

    def close(self, then: Callable[[], None]) -> None:
        then()


@dataclass(frozen=True)
class _Marker:
    """A request in the queue: say when everything before it is stored (and durable)."""

    durable: bool
    done: threading.Event


class ThreadWriter:
    """A thread that moves staged rows into their segments; `take` waits while the disk is slower than the caller."""

    retained = SLOTS  # slots are freed and taken in the order of the rows

    def __init__(self, segments: Segments, staging: Staging, *, group: int | None, count: int) -> None:
        self._segments, self._staging, self._group = segments, staging, group
        self.stored = self.durable = count
        self._error: StoreError | None = None
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, Record] | _Marker | Callable[[], None] | None] = queue.SimpleQueue()
        for slot in range(SLOTS):
            self._free.put(slot)
        self._thread = threading.Thread(target=self._run, name="weightbank-writer", daemon=True)
        self._thread.start()

    def take(self) -> tuple[int, Bytes]:
        self.check()
        slot = self._free.get()
        try:
            self.check()
        except StoreError:
            self._free.put(slot)
            raise
        return slot, self._staging.payload(slot)

    def give_back(self, slot: int) -> None:
        self._free.put(slot)

    def submit(self, slot: int, record: Record) -> None:
        self._staging.seal(slot, record)
        self._full.put((slot, record))

    def wait(self, *, durable: bool = False) -> None:
        self.check()
        marker = _Marker(durable, threading.Event())
        self._full.put(marker)
        marker.done.wait()
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args) from self._error

    def close(self, then: Callable[[], None]) -> None:
        if threading.current_thread() is self._thread:  # the garbage collector, in the middle of our own work
            self._full.put(then)
            return
        if self._thread.is_alive():
            self._full.put(None)
            self._thread.join()
        then()

    def _run(self) -> None:
        while True:
            idle = self._group is not None and self.durable < self.stored
            try:
                item = self._full.get(timeout=_IDLE_SECONDS if idle else None)
            except queue.Empty:
                item = _Marker(True, threading.Event())
            if callable(item):
                item()
            if item is None or callable(item):
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

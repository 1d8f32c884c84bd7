"""The parts of an open log, and how they are put down: on `close`, when the log is dropped, when the process ends."""

import os
from typing import Literal

from weightbank.errors import StoreError
from weightbank.store.manifest import Manifest
from weightbank.store.media import Directory, Medium
from weightbank.store.recovery import STAGING, adopt, recover
from weightbank.store.segments import Segments
from weightbank.store.staging import SLOTS, Staging
from weightbank.store.writer import DirectWriter, ThreadWriter, Writer

Durability = Literal["process", "commit", "none"]


class OpenLog:
    """Blobs, journal and writer of one log; holds the medium's lock if `writable`, and no reference to its `RowLog`.

    Opening costs no space on the medium: staging file and thread come with the first row that is appended.
    """

    def __init__(
        self, medium: Medium, manifest: Manifest, *, durability: Durability, group: int, writable: bool, salvage: bool
    ) -> None:
        self.medium, self.writable = medium, writable
        self._durability: Durability = durability
        if manifest.keep is not None and manifest.geometry.slots is not None:
            group = min(group, manifest.geometry.slots - manifest.keep)  # what a committed window needs stays whole
        self._group = group if durability == "commit" else None
        self._process = os.getpid()
        self._writer: Writer | None = None
        self._staging: Staging | None = None
        if not writable:
            adopt(medium, manifest.geometry)
        self.segments = Segments(medium, manifest.geometry, writable)
        try:
            self.journal = recover(self.segments, manifest.keep, unsynced=group + SLOTS, salvage=salvage)
            if writable and self._group is not None:
                self.segments.sync_all(self.journal.count)
        except BaseException:
            self.segments.close()
            raise

    def writer(self) -> Writer:
        """The writer, made when it is first needed; `CapacityError` when there is no room for staging."""
        self._check_process()
        if self._writer is None:
            if self.medium.staged:
                here = isinstance(self.medium, Directory) and self._durability != "none"
                path = self.medium.path / STAGING if here and isinstance(self.medium, Directory) else None
                self._staging = Staging(path, self.segments.geometry.row_bytes)
                self._writer = ThreadWriter(self.segments, self._staging, group=self._group, count=self.journal.count)
            else:
                self._writer = DirectWriter(self.segments, group=self._group, count=self.journal.count)
        return self._writer

    @property
    def committed(self) -> int:
        """Rows on stable storage (durability "commit") or in their segments (otherwise)."""
        if self._writer is None:
            return self.journal.count
        return self._writer.stored if self._group is None else self._writer.durable

    def wait(self, *, durable: bool = False) -> None:
        """Return when everything appended is stored, and on stable storage if `durable`."""
        if self._writer is not None:
            self._check_process()
            self._writer.wait(durable=durable)

    def truncate(self, count: int, keep: int | None) -> None:
        """Drop the rows from `count` on; nothing in the staging file may bring them back."""
        self._check_process()
        self.wait()
        if self._writer is not None:
            self._writer.close(self._discard)
        self.segments.truncate(self.journal, count, self.journal.count, keep)

    def close(self) -> None:
        """Store everything, give back preallocated space, release all handles and the lock."""
        if self._writer is None or os.getpid() != self._process:
            self._put_down()
        else:
            self._writer.close(self._put_down)

    def check(self) -> None:
        """Raise what went wrong while writing."""
        if self._writer is not None:
            self._writer.check()

    def _put_down(self) -> None:
        mine = self.writable and os.getpid() == self._process
        try:
            if mine and (self._writer is None or self._writer.stored == self.journal.count):
                self.segments.trim(self.journal.count)
                if self._group is not None:
                    self.segments.sync()
                self._discard()
        finally:
            self.segments.close()
            if self.writable:
                self.medium.unlock()

    def _discard(self) -> None:
        if self._staging is not None:
            self._staging.discard()
        self._writer = self._staging = None

    def _check_process(self) -> None:
        if self.medium.staged and os.getpid() != self._process:
            raise StoreError(
                f"{self.medium!r}: opened before this process was forked; open it here again, with read_only=True"
            )

"""What a log holds when it is opened: after a proper close, a kill, a power cut, or damage."""

import time

import numpy as np
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, LockedError, StoreError
from weightbank.store.media import Directory, Medium
from weightbank.store.records import RECORD_BYTES, Journal
from weightbank.store.segments import Geometry, Segments
from weightbank.store.staging import recover_staged

STAGING = "staging.bin"
_TAIL_BYTES, _PIECE = 256 << 20, 4 << 20
_LOCK_TRIES, _LOCK_PAUSE_SECONDS = 5, 0.1


def recover(segments: Segments, keep: int | None, *, unsynced: int, salvage: bool) -> Journal:
    """The journal of the rows that are whole; what a killed writer left is taken over, if this is a writer.

    A power cut may tear up to `unsynced` of the newest rows of a log that was not closed: those are dropped. Any other
    damage is a `CorruptError`, or, with `salvage`, the end of the log.
    """
    journal = Journal()
    closed = _read(journal, segments, keep, unsynced, salvage)
    if segments.writable and isinstance(segments.medium, Directory) and segments.medium.exists(STAGING):
        closed = False
        recover_staged(segments.medium.path / STAGING, segments, journal)
    newest = max(1 if closed else unsynced, _TAIL_BYTES // segments.geometry.stride)
    oldest = journal.count if closed else journal.count - unsynced  # before that, a power cut is no excuse
    while bad := _bad(segments, journal, keep, newest):
        if not (bad[0] >= oldest or salvage):
            raise CorruptError(
                f"{segments.medium!r}: {len(bad)} of {journal.count} rows are missing or do not match their checksums, "
                f"the first is row {bad[0]}; RowLog(..., salvage=True) keeps the {bad[0]} rows before it"
            )
        _drop(segments, journal, bad[0], journal.count, keep)  # which may bring older rows of a ring into its window
    return journal


def adopt(medium: Medium, geometry: Geometry) -> None:
    """Before reading: finish what a killed writer left, unless a writer lives or nothing may be written here."""
    if not (isinstance(medium, Directory) and medium.exists(STAGING)):
        return
    try:
        medium.lock()
    except StoreError:
        return
    try:
        segments, journal = Segments(medium, geometry, True), Journal()
        try:
            journal.scan(segments.journal, geometry.slots)
            if journal.beyond(segments.journal) == (True, journal.count):
                recover_staged(medium.path / STAGING, segments, journal)
        finally:
            segments.close()
    except StoreError:
        return
    finally:
        medium.unlock()


def become_writer(medium: Medium) -> None:
    """Lock the medium, or raise `LockedError`; a reader may hold it for the moment that `adopt` takes."""
    for left in reversed(range(_LOCK_TRIES)):
        try:
            medium.lock()
            return
        except LockedError:
            if not left or not medium.staged:
                raise
        time.sleep(_LOCK_PAUSE_SECONDS)


def damaged_rows(segments: Segments, journal: Journal, first: int) -> list[int]:
    """The numbers of the rows from `first` on that are not there or do not match their checksums; 4 MiB in memory."""
    length = segments.geometry.row_bytes
    raw = np.empty(min(length, _PIECE), np.uint8)
    bad: list[int] = []
    for number in range(first, journal.count):
        checksum = 0
        try:
            for offset in range(0, length, _PIECE):
                part = raw[: min(_PIECE, length - offset)]
                segments.read_row(number, offset, part)
                checksum = crc32(part, checksum)
            good = checksum == journal.crcs[number]
        except CorruptError:
            good = False
        if not good:
            bad.append(number)
    return bad


def _bad(segments: Segments, journal: Journal, keep: int | None, newest: int) -> list[int]:
    bad = damaged_rows(segments, journal, max(journal.first(keep), journal.count - newest))
    if bad and not (segments.writable or journal.frozen):  # a ring may have moved on in the meantime
        journal.scan(segments.journal, segments.geometry.slots)
        bad = [number for number in bad if number >= journal.first(keep)]
    return bad


def _read(journal: Journal, segments: Segments, keep: int | None, unsynced: int, salvage: bool) -> bool:
    """Fill the journal from the commit log; whether that has no room left over, as after a proper close."""
    blob, before = segments.journal, -1
    while True:
        journal.scan(blob, segments.geometry.slots)
        blank, last = journal.beyond(blob)
        whole = blank and last == journal.count
        if whole or journal.count == before:  # else a writer may just be adding to it
            break
        before = journal.count
    closed = blob.size == last * RECORD_BYTES
    torn = blank and not closed and last - journal.count <= unsynced
    if not (whole or torn or salvage):
        raise CorruptError(
            f"{segments.medium!r}: the commit log is damaged behind its first {journal.count} records, at least "
            f"{max(1, last - journal.count)} more are lost; RowLog(..., salvage=True) keeps the rows before"
        )
    if not whole:
        _drop(segments, journal, journal.count, last, keep)
    return closed


def _drop(segments: Segments, journal: Journal, count: int, before: int, keep: int | None) -> None:
    """Take the rows from `count` up to `before` off the end of a log, or, when reading only, out of sight."""
    if segments.writable:
        segments.truncate(journal, count, before, keep)
    else:
        journal.cut(count)
        journal.frozen = True

"""What happens to a log at its ends: after a kill, after damage, and when it is closed."""

import numpy as np
from zlib_ng.zlib_ng import crc32

from weightbank.errors import StoreError
from weightbank.store.media import Medium
from weightbank.store.records import Journal
from weightbank.store.segments import Segments
from weightbank.store.writer import Staging, Writer


def recover_staged(segments: Segments, journal: Journal, left: Staging) -> None:
    """Store the finished rows that a killed writer left in its staging slots, then remove them there."""
    for record, slot in left.found():
        if record.sequence == journal.count and record.slot == segments.geometry.slot(record.sequence):
            segments.reserve(record.sequence)
            segments.store(record, left.payload(slot))
            journal.add(record)
    segments.sync()
    left.discard()


def damaged_rows(segments: Segments, journal: Journal, first: int) -> list[int]:
    """The numbers of the rows from `first` on that cannot be read or do not match their checksums."""
    raw = np.empty(segments.geometry.row_bytes, np.uint8)
    bad: list[int] = []
    for number in range(first, journal.count):
        try:
            segments.read_row(number, raw)
            good = crc32(raw) == journal.crcs[number]
        except StoreError:
            good = False
        if not good:
            bad.append(number)
    return bad


def close_log(
    medium: Medium,
    segments: Segments | None,
    writer: Writer | None,
    staging: Staging | None,
    journal: Journal,
    durable: bool,
) -> None:
    """Finish writing, give back preallocated space, release the lock; also runs when a log is dropped unclosed."""
    try:
        if writer is not None:
            writer.close()
        if segments is not None and segments.writable and (writer is None or writer.stored == journal.count):
            segments.trim(journal.count)
            if durable:
                segments.sync()
            if staging is not None:
                staging.discard()
        if segments is not None:
            segments.close()
    finally:
        medium.unlock()

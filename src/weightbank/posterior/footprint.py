"""The exact bytes of a log on disk, part by part, and the vectors that recording and drawing hold in memory."""

from weightbank.distributions import Keep, Sketch, Window
from weightbank.distributions.keeping import describe, ring_rows
from weightbank.formats import Format, Native
from weightbank.layout import Layout
from weightbank.store.manifest import Manifest
from weightbank.store.records import RECORD_BYTES
from weightbank.store.segments import STRIDE, Geometry

_STAGED = 4  # rows a log stages at once; a ring has one slot more besides those it keeps
_JOURNAL_BYTES, _JOURNAL_STEP = 36, 1024 * RECORD_BYTES
_SAMPLE_BLOCKS, _DRAWS_AT_ONCE, _GROUP = 48 << 20, 256 << 20, 16
_SKETCH_BLOCKS = 256 << 20


def disk_parts(
    size: int, layout: Layout | None, iterates: int, format: Format, keep: Keep, *, checkpoint: bool, staged: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by part: what lies on the disk in the end, and what is there besides while recording."""
    ring = ring_rows(keep)
    geometry = Geometry.of(format.row_bytes(size), None if ring is None else ring + _STAGED + 1)
    appended = rows_appended(iterates, keep)
    held = appended if geometry.slots is None else min(appended, geometry.slots)
    manifest = Manifest(size, format, ring, geometry, layout, describe(keep))
    disk = {
        "rows": held * geometry.stride,
        "commits": whole_pages(appended * RECORD_BYTES),
        "moments": 2 * (STRIDE + whole_pages(8 * size)),
        "reference": whole_pages(64 + 4 * size),
        "manifest": whole_pages(len(manifest.dump())),
    }
    last = (held - 1) // geometry.segment_rows
    reserved = last * geometry.segment_rows * geometry.stride + geometry.segment_bytes(last)
    journal = -(-appended * RECORD_BYTES // _JOURNAL_STEP) * _JOURNAL_STEP
    working = {"preallocated": reserved - disk["rows"] + journal - disk["commits"]}
    if staged:
        working["staging"] = _STAGED * (STRIDE + geometry.stride)
    if checkpoint:  # weights, momentum and the three vectors of the moments; random states
        disk["checkpoint"] = working["next checkpoint"] = 5 * 4 * size + 65_536
    return disk, working


def memory_parts(
    size: int, iterates: int, format: Format, keep: Keep, samples: int, *, checkpoint: bool
) -> dict[str, int]:
    """Bytes of memory, besides what training itself takes, to "record", to "sample" at once and to "evaluate"."""
    vector, stride = 4 * size, whole_pages(format.row_bytes(size))
    journal = _JOURNAL_BYTES * rows_appended(iterates, keep)
    # mean, scatter, reference, the training loop's vector; a scratch vector where rows are encoded
    vectors = 4 if format == Native("float32") else 5
    record = (vectors + 3 * checkpoint) * vector + _STAGED * (STRIDE + stride) + journal
    if isinstance(keep, Sketch):
        record += min(_SKETCH_BLOCKS, 4 * keep.rows * vector) + 4 * 8 * (2 * keep.rows) ** 2
    rows = rows_kept(iterates, keep)
    group = max(1, _DRAWS_AT_ONCE // (vector * _GROUP)) * _GROUP

    def draws(count: int) -> int:
        padded = -(-count // _GROUP) * _GROUP
        law = 6 * vector + journal  # the moments' vectors and the law's own
        return law + count * vector + 5 * 8 * padded * rows + min(_SAMPLE_BLOCKS, (rows + padded) * 2 * vector)

    return {"record": record, "sample": draws(samples), "evaluate": draws(min(samples, group))}


def rows_appended(iterates: int, keep: Keep) -> int:
    """Rows written for `iterates`: a full sketch of 2 l rows is followed by l rows that replace it."""
    if not isinstance(keep, Sketch):
        return iterates
    return iterates + keep.rows * max(0, (iterates - 1) // keep.rows - 1)


def rows_kept(iterates: int, keep: Keep) -> int:
    """Rows that stand for the posterior in the end, at most."""
    if isinstance(keep, str):
        return iterates
    return min(iterates, keep.rows if isinstance(keep, Window) else 2 * keep.rows)


def whole_pages(count: int) -> int:
    """Bytes rounded up to pages of 4 KiB, as rows are padded and disks allocate."""
    return -(-count // STRIDE) * STRIDE

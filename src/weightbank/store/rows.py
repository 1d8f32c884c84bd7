"""An append-only log of rows of P numbers: crash-safe to write, read by column blocks in bounded memory."""

import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, LayoutError, OverwrittenError, StoreError
from weightbank.formats import Format, Native, format_of
from weightbank.layout import Layout
from weightbank.store.manifest import Manifest
from weightbank.store.media import Bytes, Directory, Medium
from weightbank.store.place import medium_of
from weightbank.store.records import ITERATE, Journal, Record
from weightbank.store.recovery import close_log, damaged_rows, recover_staged
from weightbank.store.reference import read_reference, write_reference
from weightbank.store.segments import Geometry, Segments
from weightbank.store.writer import Staging, Writer
from weightbank.types import Flat

Durability = Literal["process", "commit", "none"]
_STAGING, _SLOTS, _GROUP, _TAIL_BYTES = "staging.bin", 4, 32, 256 << 20


class RowLog:
    """Rows of `size` numbers in a number format, appended one by one and never rewritten.

    Args:
        where: a directory (any file system), ":memory:", a device-DAX node such as `/dev/dax0.0`, or a `Medium`.
        format: how a row is stored: a `Format`, a torch dtype, or a name such as "bf16"; float32 if not given.
            A log that exists keeps its own; another one here is an error.
        durability: "process" - an appended row survives the death of the process (kill -9) as soon as `append`
            returns; "commit" - besides, every `group` rows, and when idle, all rows are made to survive power loss;
            "none" - rows in flight are lost with the process.
        group: rows per durable commit.
        read_only: open without the writer's lock, also while another process appends.
        salvage: on opening a damaged log, keep the rows before the first bad one instead of refusing.

    Nothing is created before the number of weights is known: `Moments` calls `create`, or you do. On disk
    (`docs/format.md`): manifest.json, reference.bin, rows-*.bin, commits.bin, moments-{a,b}.bin, staging.bin.

    Raises `LockedError` for a second writer, `CorruptError` for foreign or damaged files, `StoreError` otherwise.
    """

    def __init__(
        self,
        where: str | Path | Medium,
        *,
        format: Format | torch.dtype | str | None = None,
        durability: Durability = "process",
        group: int = _GROUP,
        read_only: bool = False,
        salvage: bool = False,
    ) -> None:
        if durability not in ("process", "commit", "none"):
            raise StoreError(f"durability={durability!r}; wanted 'process', 'commit' or 'none'")
        self.medium = medium_of(where)
        self.read_only, self.durability, self._group, self._salvage = read_only, durability, max(1, group), salvage
        self._wanted = None if format is None else format_of(format)
        self._manifest: Manifest | None = None
        self._segments: Segments | None = None
        self._writer: Writer | None = None
        self._staging: Staging | None = None
        self._journal = Journal()
        self._durable = durability == "commit"
        self._closer: weakref.finalize[Any, RowLog] | None = None
        self._locked = False
        if self.medium.exists("manifest.json"):
            self._open()
        elif read_only:
            raise StoreError(f"{self.medium!r}: no rows here (there is no manifest.json); record some first")
        elif isinstance(self.medium, Directory) and self.medium.path.exists() and not self.medium.path.is_dir():
            raise StoreError(f"{self.medium!r}: a file is in the way; name a directory")

    # what is here -----------------------------------------------------------------------------------------------

    @property
    def created(self) -> bool:
        """Whether the log exists already."""
        return self._manifest is not None

    @property
    def manifest(self) -> Manifest:
        """What was fixed when the log was created."""
        if self._manifest is None:
            raise StoreError(f"{self.medium!r}: nothing recorded yet; give it to Moments, or call create(size)")
        return self._manifest

    @property
    def size(self) -> int:
        """P, the numbers per row."""
        return self.manifest.size

    @property
    def format(self) -> Format:
        """How rows are stored."""
        return self.manifest.format

    @property
    def count(self) -> int:
        """Rows ever appended, those that have left a ring included."""
        return self._journal.count

    @property
    def first(self) -> int:
        """The number of the oldest row that is still kept."""
        kept = self.manifest.keep if self._manifest else None
        return 0 if kept is None else max(0, self.count - kept)

    @property
    def committed(self) -> int:
        """Rows that are on stable storage (durability "commit") or in their segments (otherwise)."""
        if self._writer is None:
            return self.count
        return self._writer.durable if self._durable else self._writer.stored

    @property
    def steps(self) -> list[int]:
        """The training step of every row ever appended."""
        return [int(step) for step in self._journal.steps]

    @property
    def journal(self) -> Journal:
        """Steps, kinds, generations and checksums of all rows."""
        return self._journal

    @property
    def nbytes(self) -> int:
        """Bytes allocated on the medium."""
        return sum(self.medium.sizes().values())

    def __len__(self) -> int:
        return self.count - self.first

    def __repr__(self) -> str:
        if self._manifest is None:
            return f"RowLog({self.medium!r}, nothing recorded yet)"
        return f"RowLog({self.medium!r}, {len(self):,} rows of {self.size:,} weights in {self.format!r})"

    # writing ----------------------------------------------------------------------------------------------------

    def create(self, size: int, *, layout: Layout | None = None, keep: int | None = None, notes: Any = None) -> None:
        """Create the log for rows of `size` numbers; with `keep`, a ring of the newest `keep` rows.

        On a log that exists this checks that it fits. `notes` is any JSON value to keep in the manifest.
        Raises `LayoutError` if the log holds other weights, `StoreError` if it was created otherwise.
        """
        if self._manifest is not None:
            self._manifest.check_fit(repr(self.medium), size, layout, keep)
            return
        if self.read_only:
            raise StoreError(f"{self.medium!r}: opened read-only; open it for writing to create rows")
        if size < 1:
            raise StoreError(f"rows of {size} numbers; wanted at least 1")
        chosen = self._wanted if self._wanted is not None else Native("float32")
        geometry = Geometry.of(chosen.row_bytes(size), None if keep is None else keep + _SLOTS + 1)
        manifest = Manifest(size, chosen, keep, geometry, layout, notes)
        self._lock()
        self.medium.replace("manifest.json", manifest.dump())
        self._manifest = manifest
        self._start()

    def append(
        self, row: Flat, *, step: int | None = None, kind: int = ITERATE, generation: int = 0, fill: Any = None
    ) -> int:
        """Append one row of shape (P,) in float32 and return its number; reads it once, keeps no copy.

        `fill(buffer)`, for a float32 log, writes the row straight into its place instead. Waits only while the disk
        is slower than the caller. Raises `NonFiniteError`, `LayoutError`, `CapacityError` with nothing written.
        """
        segments = self._writable()
        if row.numel() != self.size or row.ndim != 1:
            raise LayoutError(f"a row of shape {tuple(row.shape)} came; this log has rows of ({self.size},)")
        sequence = self.count
        segments.reserve(sequence)
        slot, buffer = self._take()
        try:
            if fill is not None:
                fill(torch.from_numpy(buffer.view(np.float32)))
            else:
                self.format.encode_row(row, torch.from_numpy(buffer))
        except BaseException:
            if self._writer is not None:
                self._writer.give_back(slot)
            raise
        step = sequence if step is None else step
        record = Record(sequence, step, segments.geometry.slot(sequence), crc32(buffer), kind, generation)
        if self._writer is not None:
            self._writer.submit(slot, record)
        else:
            segments.store(record, buffer)
        self._journal.add(record)
        return sequence

    @property
    def direct(self) -> bool:
        """Whether a row's bytes are simply its float32 numbers, so that `append` can take `fill`."""
        return self.format == Native("float32")

    def checksum(self, row: Flat) -> int:
        """The checksum `row` would be stored with."""
        buffer = np.empty(self.manifest.geometry.row_bytes, np.uint8)
        self.format.encode_row(row, torch.from_numpy(buffer))
        return int(crc32(buffer))

    def flush(self, *, durable: bool | None = None) -> None:
        """Return when all rows are in their segments; on stable storage if `durable` (default: durability "commit")."""
        durable = self._durable if durable is None else durable
        if self._writer is not None:
            self._writer.wait(durable=durable)

    def truncate(self, count: int) -> None:
        """Drop the rows from number `count` on; they cannot be had back.

        Raises `OverwrittenError` when a ring has already lost rows that would then be the newest.
        """
        segments = self._writable()
        if count >= self.count:
            return
        self.flush(durable=False)
        segments.forget_after(count)
        self._journal.cut(count)
        self._restart_writer()

    def set_reference(self, reference: Flat) -> None:
        """Store the row that all rows are relative to, once."""
        self._writable()
        write_reference(self.medium, reference)

    def reference(self) -> Flat | None:
        """The reference row, shape (P,), float32, or None before the first row; `CorruptError` if it is damaged."""
        return read_reference(self.medium, self.size)

    def close(self) -> None:
        """Store everything, give back preallocated space, release the lock; the log can be opened again."""
        if self._closer is not None and self._closer.detach() is not None:
            close_log(
                self.medium, self._segments, self._writer, self._staging, self._journal, self.durability == "commit"
            )
            self._segments, self._writer, self._closer = None, None, None
            self._locked = False

    def __enter__(self) -> "RowLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # reading ----------------------------------------------------------------------------------------------------

    def read(self, rows: range, columns: slice, out: Float[Tensor, "R W"]) -> None:
        """Decode `columns` of the rows with the numbers in `rows` into `out`, shape (R, W), float32.

        `columns` starts at a multiple of the format's tile. Memory: one encoded copy of what is read. Raises
        `OverwrittenError` when a row has left the ring.
        """
        segments = self._reading(rows)
        start, stop, _ = columns.indices(self.size)
        offset, length = self.format.span(start, stop)
        if self.direct and out.stride(1) == 1 and out.is_contiguous():
            segments.read_span(rows.start, offset, out.numpy().view(np.uint8).reshape(len(rows), -1), rows.step)
        else:
            raw = np.empty((len(rows), length), np.uint8)
            segments.read_span(rows.start, offset, raw, rows.step)
            self.format.decode_rows(torch.from_numpy(raw), out)
        self._still_there(rows)

    def row(self, number: int) -> Flat:
        """One whole row, shape (P,), float32, checked against its checksum."""
        segments = self._reading(range(number, number + 1))
        raw = np.empty(self.manifest.geometry.row_bytes, np.uint8)
        segments.read_row(number, raw)
        self._still_there(range(number, number + 1))
        if crc32(raw) != self._journal.crcs[number]:
            raise CorruptError(f"{self.medium!r}: row {number} does not match its checksum; see RowLog(salvage=True)")
        out = torch.empty(1, self.size)
        self.format.decode_rows(torch.from_numpy(raw)[None], out)
        return out[0]

    def refresh(self) -> int:
        """Of a read-only log: see what the writer has appended since; returns `count`."""
        if self.read_only and self._segments is not None:
            self._journal.scan(self._segments.journal, self._segments.geometry.slots)
        return self.count

    def damaged(self, *, newest: int | None = None) -> list[int]:
        """The numbers of kept rows (only the `newest` ones if given) that do not match their checksums."""
        segments = self._reading(range(0))
        first = self.first if newest is None else max(self.first, self.count - newest)
        return damaged_rows(segments, self._journal, first)

    # inside -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        manifest = Manifest.parse(self.medium.read("manifest.json", 64 << 20), repr(self.medium))
        if self._wanted is not None and self._wanted != manifest.format:
            raise StoreError(f"{self.medium!r} holds rows in {manifest.format!r}; {self._wanted!r} asked for")
        self._manifest = manifest
        if not self.read_only:
            self._lock()
        try:
            self._start()
        except BaseException:
            self._abandon()
            raise

    def _start(self) -> None:
        geometry = self.manifest.geometry
        if self.read_only:
            self._adopt_abandoned()
            if not self.medium.exists("commits.bin"):
                raise StoreError(f"{self.medium!r}: no commits yet; nothing to read")
        self._segments = Segments(self.medium, geometry, not self.read_only)
        self._journal.scan(self._segments.journal, geometry.slots)
        if not self.read_only and self.medium.staged:
            assert isinstance(self.medium, Directory)
            path = self.medium.path / _STAGING
            if path.exists():
                recover_staged(self._segments, self._journal, Staging(path, _SLOTS, geometry.row_bytes))
            self._staging = Staging(None if self.durability == "none" else path, _SLOTS, geometry.row_bytes)
        self._check_tail(self._segments)
        self._restart_writer()

    def _adopt_abandoned(self) -> None:
        """Before reading: let a short-lived writer finish what a killed one left, if no writer lives."""
        if isinstance(self.medium, Directory) and self.medium.exists(_STAGING):
            try:
                RowLog(self.medium.path, salvage=self._salvage).close()
            except StoreError:
                return

    def _check_tail(self, segments: Segments) -> None:
        """Look at the newest rows; what a power cut tore is dropped, other damage is an error."""
        unsynced = self._group + _SLOTS
        newest = max(unsynced, _TAIL_BYTES // segments.geometry.stride)
        bad = damaged_rows(segments, self._journal, max(self.first, self.count - newest))
        if not bad:
            return
        if not (self.read_only or self._salvage or bad[0] >= self.count - unsynced):
            raise CorruptError(
                f"{self.medium!r}: {len(bad)} of {self.count} rows do not match their checksums, the first is row "
                f"{bad[0]}; RowLog(..., salvage=True) keeps the {bad[0]} rows before it"
            )
        if not self.read_only:
            segments.forget_after(bad[0])
        self._journal.cut(bad[0])

    def _restart_writer(self) -> None:
        if self._closer is not None:
            self._closer.detach()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._staging is not None and self._segments is not None:
            group = self._group if self._durable else None
            self._writer = Writer(self._segments, self._staging, _SLOTS, group=group, count=self.count)
        arguments = (
            self.medium,
            self._segments,
            self._writer,
            self._staging,
            self._journal,
            self.durability == "commit",
        )
        self._closer = weakref.finalize(self, close_log, *arguments)

    def _take(self) -> tuple[int, Bytes]:
        if self._writer is not None:
            return self._writer.take()
        return 0, np.empty(self.manifest.geometry.row_bytes, np.uint8)

    def _lock(self) -> None:
        if not self._locked:
            self.medium.lock()
            self._locked = True

    def _abandon(self) -> None:
        if self._segments is not None:
            self._segments.close()
        if self._locked:
            self.medium.unlock()

    def _writable(self) -> Segments:
        if self.read_only:
            raise StoreError(f"{self.medium!r}: opened read-only; open it for writing to append")
        if self.manifest and self._segments is None:
            raise StoreError(f"{self.medium!r}: this log was closed; open it again")
        assert self._segments is not None
        return self._segments

    def _reading(self, rows: range) -> Segments:
        if self.manifest and self._segments is None:
            raise StoreError(f"{self.medium!r}: this log was closed; open it again")
        assert self._segments is not None
        if self._writer is not None:
            self._writer.wait()
        if len(rows) and (rows[-1] >= self.count or rows[0] < 0 or rows.step < 1):
            raise StoreError(f"rows {rows} asked for, there are rows 0 to {self.count - 1}")
        self._still_there(rows)
        return self._segments

    def _still_there(self, rows: range) -> None:
        if self.manifest.keep is None or not len(rows):
            return
        newest = self.refresh()
        slots = self.manifest.geometry.slots or 0
        if rows[0] < newest - slots + _SLOTS:
            raise OverwrittenError(
                f"row {rows[0]} has left the window of {self.manifest.keep} rows (the newest is {newest - 1}); "
                "take gaussian() again, or compress() it before recording on"
            )

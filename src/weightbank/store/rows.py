"""An append-only log of rows of P numbers: crash-safe to write, read by column blocks in bounded memory."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, LayoutError, OverwrittenError, StoreError
from weightbank.formats import Format, Native, format_of
from weightbank.layout import Layout
from weightbank.store.encoding import Prepare, encode
from weightbank.store.manifest import MANIFEST_BYTES, Manifest
from weightbank.store.media import Directory, Medium, allocate
from weightbank.store.opened import Durability, OpenLog
from weightbank.store.place import medium_of
from weightbank.store.records import ITERATE, Journal, Record
from weightbank.store.recovery import become_writer, damaged_rows
from weightbank.store.reference import read_reference, write_reference
from weightbank.store.segments import COMMITS, Geometry, Segments
from weightbank.store.staging import SLOTS
from weightbank.types import Flat

_MANIFEST, _GROUP = "manifest.json", 32


class RowLog:
    """Rows of `size` numbers in a number format, appended one by one and never rewritten.

    Args:
        where: a directory (any file system), ":memory:", a device-DAX node such as `/dev/dax0.0`, or a `Medium`.
        format: how a row is stored: a `Format`, a torch dtype, or a name such as "bf16"; float32 if not given.
            A log that exists keeps its own; another one here is an error.
        durability: "process" - an appended row survives the death of the process (kill -9) as soon as `append`
            returns; "commit" - besides, every `group` rows, and when idle, all rows are made to survive power loss;
            "none" - rows in flight are lost with the process.
        group: rows per durable commit; at most 5 in a ring, whose oldest rows a commit must not lose.
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
        self._opened: OpenLog | None = None
        self._journal = Journal()
        self._closer: weakref.finalize[Any, RowLog] | None = None
        if isinstance(self.medium, Directory) and self.medium.path.exists() and not self.medium.path.is_dir():
            raise StoreError(f"{self.medium!r}: a file is in the way; name a directory")
        if self.medium.exists(_MANIFEST):
            self._open()
        elif read_only:
            raise StoreError(f"{self.medium!r}: no rows here (there is no {_MANIFEST}); record some first")

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
        return self._journal.first(self._manifest.keep) if self._manifest else 0

    @property
    def committed(self) -> int:
        """Rows that are on stable storage (durability "commit") or in their segments (otherwise)."""
        return self.count if self._opened is None else self._opened.committed

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
        if self._manifest is None:
            self._create(size, layout, keep, notes)
        self.manifest.check_fit(repr(self.medium), size, layout, keep)

    def append(
        self,
        row: Flat | None,
        *,
        step: int | None = None,
        kind: int = ITERATE,
        generation: int = 0,
        prepare: Prepare | None = None,
    ) -> int:
        """Append one row of shape (P,) in float32 and return its number; reads it once, keeps no copy.

        `prepare(columns, row)` is called to fill in those columns of `row` just before they are read, a block that
        fits the cache at a time; a float32 log (`direct`) then takes row=None and gives the row's own place to fill.
        Waits only while the disk is slower than the caller. Raises `NonFiniteError`, `LayoutError`, `CapacityError`
        with nothing written.
        """
        opened = self._writable()
        sequence = self.count
        step = sequence if step is None else step
        if row is None and not (self.direct and prepare):
            raise StoreError(f"no row came for {self!r}; only float32 rows can be made in place, by `prepare`")
        if row is not None and (row.numel() != self.size or row.ndim != 1):
            raise LayoutError(f"a row of shape {tuple(row.shape)} came; this log has rows of ({self.size},)")
        if not -(2**63) <= step < 2**63:
            raise StoreError(f"step {step} came; wanted a number of 64 bits")
        opened.segments.reserve(sequence)
        writer = opened.writer()
        slot, buffer = writer.take()
        try:
            checksum = encode(self.format, self.size, row, buffer, prepare)
        except BaseException:
            writer.give_back(slot)
            raise
        record = Record(sequence, step, opened.segments.geometry.slot(sequence), checksum, kind, generation)
        writer.submit(slot, record)
        self._journal.add(record)
        return sequence

    @property
    def direct(self) -> bool:
        """Whether a row's bytes are simply its float32 numbers, so that `append` can make it in place."""
        return self.format == Native("float32")

    @property
    def retained(self) -> int:
        """How many of the newest rows that were made in place still lie where they were made."""
        return self._writable().writer().retained if self.direct else 0

    def checksum(self, row: Flat) -> int:
        """The checksum `row` would be stored with."""
        return encode(self.format, self.size, row, allocate(self.manifest.geometry.row_bytes, repr(self)))

    def flush(self, *, durable: bool | None = None) -> None:
        """Return when all rows are in their segments; on stable storage if `durable` (default: durability "commit")."""
        if self._opened is not None:
            self._opened.wait(durable=self.durability == "commit" if durable is None else durable)

    def truncate(self, count: int) -> None:
        """Drop the rows from number `count` on; they cannot be had back.

        Raises `OverwrittenError` when a ring has already lost all rows that would be left.
        """
        opened = self._writable()
        if count < 0:
            raise StoreError(f"truncate to {count} rows; wanted 0 or more")
        if count >= self.count:
            return
        slots = self.manifest.geometry.slots
        if slots is not None and 0 < count <= self.count - slots:
            raise OverwrittenError(
                f"the rows before row {count} have left the window of {self.manifest.keep} rows (there are "
                f"{self.count}); record into another directory"
            )
        opened.truncate(count, self.manifest.keep)

    def set_reference(self, reference: Flat) -> None:
        """Store the row that all rows are relative to, once."""
        self._writable()
        write_reference(self.medium, reference, self.size)

    def reference(self) -> Flat | None:
        """The reference row, shape (P,), float32, or None before the first row; `CorruptError` if it is damaged."""
        return read_reference(self.medium, self.size)

    def close(self) -> None:
        """Store everything, give back preallocated space, release the lock; the log can be opened again.

        Raises what went wrong while the last rows were written; the log is closed all the same.
        """
        if self._closer is not None and self._opened is not None and self._closer.detach() is not None:
            opened, self._opened, self._closer = self._opened, None, None
            opened.close()
            opened.check()

    def __enter__(self) -> "RowLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except StoreError:
            if kind is None:
                raise

    # reading ----------------------------------------------------------------------------------------------------

    def read(self, rows: range, columns: slice, out: Float[Tensor, "R W"]) -> None:
        """Decode `columns` of the rows with the numbers in `rows` into `out`, shape (R, W), float32.

        `columns` starts at a multiple of the format's tile. Memory: one encoded copy of what is read, none in float32.
        Checksums are of whole rows, so they are not looked at here (`row` and `damaged` do). Raises
        `OverwrittenError` when a row has left the ring, `LayoutError` when `out` has another shape.
        """
        segments = self._reading(rows)
        start, stop, step = columns.indices(self.size)
        width = max(0, stop - start)
        if step != 1 or tuple(out.shape) != (len(rows), width) or out.dtype != torch.float32:
            raise LayoutError(
                f"{len(rows)} rows of columns {start} to {stop}, each {step}., were to go into {out.dtype} of shape "
                f"{tuple(out.shape)}; wanted every column and float32 of shape ({len(rows)}, {width})"
            )
        if out.numel() == 0:
            return
        offset, length = self.format.span(start, stop)
        if self.direct and out.is_contiguous():
            segments.read_span(rows.start, offset, out.numpy().view(np.uint8).reshape(len(rows), -1), rows.step)
        else:
            raw = allocate(len(rows) * length, repr(self)).reshape(len(rows), length)
            segments.read_span(rows.start, offset, raw, rows.step)
            self.format.decode_rows(torch.from_numpy(raw), out)
        self._still_there(rows)

    def row(self, number: int) -> Flat:
        """One whole row, shape (P,), float32, checked against its checksum."""
        segments = self._reading(range(number, number + 1))
        segments.check_there(number)
        raw = allocate(self.manifest.geometry.row_bytes, repr(self))
        segments.read_row(number, 0, raw)
        self._still_there(range(number, number + 1))
        if crc32(raw) != self._journal.crcs[number]:
            raise CorruptError(f"{self.medium!r}: row {number} does not match its checksum; see RowLog(salvage=True)")
        if self.direct:
            return torch.from_numpy(raw.view(np.float32))
        out = torch.from_numpy(allocate(4 * self.size, repr(self)).view(np.float32))
        self.format.decode_rows(torch.from_numpy(raw)[None], out[None])
        return out

    def refresh(self) -> int:
        """Of a read-only log: see what the writer has appended, or truncated, since; returns `count`."""
        if self.read_only and self._opened is not None and not self._journal.frozen:
            segments = self._opened.segments
            if not self._journal.agrees(segments.journal):
                self._journal.cut(0)
                segments.release()
            self._journal.scan(segments.journal, segments.geometry.slots)
        return self.count

    def damaged(self, *, newest: int | None = None) -> list[int]:
        """The numbers of kept rows (only the `newest` ones if given) that do not match their checksums."""
        segments = self._reading(range(0))
        first = self.first if newest is None else max(self.first, self.count - newest)
        return damaged_rows(segments, self._journal, first)

    # inside -----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        manifest = Manifest.parse(self.medium.read(_MANIFEST, MANIFEST_BYTES), repr(self.medium))
        if self._wanted is not None and self._wanted != manifest.format:
            raise StoreError(f"{self.medium!r} holds rows in {manifest.format!r}; {self._wanted!r} asked for")
        if not self.read_only:
            become_writer(self.medium)
        self._start(manifest)

    def _create(self, size: int, layout: Layout | None, keep: int | None, notes: Any) -> None:
        if self.read_only:
            raise StoreError(f"{self.medium!r}: opened read-only; open it for writing to create rows")
        if not 1 <= size < 2**48 or not (keep is None or 1 <= keep < 2**47):
            raise StoreError(f"rows of {size} numbers, {keep} of them kept; wanted at least 1")
        if layout is not None and layout.size != size:
            raise LayoutError(f"rows of {size} numbers and a layout of {layout.size} weights came; wanted the same")
        chosen = self._wanted if self._wanted is not None else Native("float32")
        geometry = Geometry.of(chosen.row_bytes(size), None if keep is None else keep + SLOTS + 1)
        manifest = Manifest(size, chosen, keep, geometry, layout, notes)
        data = manifest.dump()
        become_writer(self.medium)
        try:
            if self.medium.exists(_MANIFEST):  # another process was faster
                self.medium.unlock()
                self._open()
                return
            if self.medium.sizes().get(COMMITS):
                raise CorruptError(
                    f"{self.medium!r}: there are rows here but no {_MANIFEST}; put it back or use another directory"
                )
            Segments(self.medium, geometry, True).close()
            self.medium.replace(_MANIFEST, data)
        except BaseException:
            self.medium.unlock()
            raise
        self._start(Manifest.parse(data, repr(self.medium)))

    def _start(self, manifest: Manifest) -> None:
        """Open what the manifest describes; the medium is locked already, unless this is for reading only."""
        try:
            if not self.medium.exists(COMMITS):
                raise CorruptError(f"{self.medium!r}: {COMMITS} is missing; the rows cannot be told apart without it")
            self._opened = OpenLog(
                self.medium,
                manifest,
                durability=self.durability,
                group=self._group,
                writable=not self.read_only,
                salvage=self._salvage,
            )
        except BaseException:
            if not self.read_only:
                self.medium.unlock()
            raise
        self._manifest, self._journal = manifest, self._opened.journal
        self._closer = weakref.finalize(self, self._opened.close)

    def _open_log(self) -> OpenLog:
        if self.manifest and self._opened is None:
            raise StoreError(f"{self.medium!r}: this log was closed; open it again")
        assert self._opened is not None
        return self._opened

    def _writable(self) -> OpenLog:
        if self.read_only:
            raise StoreError(f"{self.medium!r}: opened read-only; open it for writing to append")
        return self._open_log()

    def _reading(self, rows: range) -> Segments:
        opened = self._open_log()
        opened.wait()
        if len(rows) and (rows[-1] >= self.count or rows[0] < 0 or rows.step < 1):
            raise StoreError(f"rows {rows} asked for, there are rows 0 to {self.count - 1}")
        self._still_there(rows)
        return opened.segments

    def _still_there(self, rows: range) -> None:
        if self.manifest.keep is None or not len(rows):
            return
        newest = self.refresh()
        slots = self.manifest.geometry.slots or 0
        if rows[0] < max(self._journal.floor, newest - slots + SLOTS):
            raise OverwrittenError(
                f"row {rows[0]} has left the window of {self.manifest.keep} rows (the newest is {newest - 1}); "
                "take gaussian() again, or compress() it before recording on"
            )

"""What a posterior will need before it is recorded: bytes on disk, memory, time, and whether they are there."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weightbank.distributions import Keep, Window
from weightbank.distributions.keeping import describe
from weightbank.errors import CapacityError
from weightbank.formats import Format, format_of
from weightbank.layout import Layout
from weightbank.posterior.calibration import Speeds, measure_speeds
from weightbank.posterior.footprint import disk_parts, memory_parts, rows_appended, rows_kept, whole_pages
from weightbank.posterior.machine import free_disk, free_memory
from weightbank.sizes import duration, readable
from weightbank.store.place import medium_of
from weightbank.store.records import RECORD_BYTES

_GROUP = 16  # draws are multiplied in groups of this many


@dataclass(frozen=True)
class Plan:
    """The cost of recording `iterates` of `weights` numbers; all sizes in bytes. `print` it for a table.

    Attributes:
        disk: what lies on the disk once recording is over, by part.
        working: what is there besides while recording, by part: preallocated rows, staging slots, the checkpoint.
        memory: "record": while recording, besides what training itself takes; "sample": for all draws at once;
            "evaluate": for the same draws taken one group at a time, as `evaluate` does.
        place: where the rows are to be; None if that was not said.
        free_disk: bytes free there, or the budget if that is less.
        free_memory: bytes of memory free now, or the limit that was given.
        speeds: as measured, if `measure` was asked for.
    """

    weights: int
    iterates: int
    format: Format
    keep: Keep
    samples: int
    disk: dict[str, int]
    working: dict[str, int]
    memory: dict[str, int]
    place: str | None = None
    free_disk: int | None = None
    free_memory: int | None = None
    speeds: Speeds | None = None

    @property
    def bytes(self) -> int:
        """Bytes on disk once recording is over."""
        return sum(self.disk.values())

    @property
    def most_bytes(self) -> int:
        """Bytes on disk at most, while recording."""
        return self.bytes + sum(self.working.values())

    @property
    def bytes_per_iterate(self) -> int:
        """What each further iterate adds while rows are still being added: its row, padded to 4 KiB, and its record."""
        return whole_pages(self.format.row_bytes(self.weights)) + RECORD_BYTES

    @property
    def rows(self) -> int:
        """Rows that stand for the posterior in the end."""
        return rows_kept(self.iterates, self.keep)

    @property
    def seconds(self) -> dict[str, float]:
        """Estimated seconds: "write" all rows, "sample" the draws in one pass; empty if nothing was measured."""
        if self.speeds is None:
            return {}
        row = self.format.row_bytes(self.weights)
        padded = -(-self.samples // _GROUP) * _GROUP
        sample = self.rows * row / self.speeds.read
        sample += padded * self.rows * self.weights / self.speeds.multiply
        sample += self.samples * self.weights / self.speeds.normals
        written = rows_appended(self.iterates, self.keep) * self.bytes_per_iterate
        return {"write": written / self.speeds.write, "sample": sample}

    @property
    def shortage(self) -> dict[str, int]:
        """Bytes that are missing, by what is short ("disk", "memory"); empty if everything fits."""
        missing = {}
        if self.free_disk is not None and self.most_bytes > self.free_disk:
            missing["disk"] = self.most_bytes - self.free_disk
        wanted = max(self.memory["record"], self.memory["evaluate"])
        if self.free_memory is not None and wanted > self.free_memory:
            missing["memory"] = wanted - self.free_memory
        return missing

    def check(self) -> "Plan":
        """Return the plan itself if it fits; else raise `CapacityError` with the numbers and what would fit."""
        short = self.shortage
        if "disk" in short and self.free_disk is not None:
            raise CapacityError(
                f"{self.place}: {self.iterates:,} iterates of {self.weights:,} weights in {self.format!r} need "
                f"{readable(self.most_bytes)} of disk, {readable(self.free_disk)} are free, "
                f"{readable(short['disk'])} are missing; {self._smaller()}"
            )
        if "memory" in short and self.free_memory is not None:
            raise CapacityError(
                f"recording takes {readable(self.memory['record'])} of memory and {self.samples} draws "
                f"{readable(self.memory['evaluate'])}; {readable(self.free_memory)} are free, "
                f"{readable(short['memory'])} are missing; keep the rows in a directory, or take fewer weights "
                "(Layout.of(model, where=within(...)))"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "weights": self.weights,
            "iterates": self.iterates,
            "rows": self.rows,
            "format": repr(self.format),
            **describe(self.keep),
            "bytes": self.bytes,
            "most_bytes": self.most_bytes,
            "bytes_per_iterate": self.bytes_per_iterate,
            "disk": self.disk,
            "working": self.working,
            "memory": self.memory,
            "samples": self.samples,
            "seconds": self.seconds,
            "place": self.place,
            "free_disk": self.free_disk,
            "free_memory": self.free_memory,
            "shortage": self.shortage,
        }

    def lines(self) -> list[tuple[str, str]]:
        """What and how much, line by line, for people."""
        out = [("weights", f"{self.weights:,}"), ("iterates", f"{self.iterates:,}"), ("rows kept", f"{self.rows:,}")]
        out += [("format", f"{self.format!r}, {self.format.bits_per_weight:g} bits per weight")]
        out += [("bytes per iterate", f"{self.bytes_per_iterate:,}")]
        out += [("on disk", f"{self.bytes:,} ({readable(self.bytes)})")]
        out += [(f"  {part}", f"{size:,}") for part, size in self.disk.items() if size]
        out += [("while recording", f"{self.most_bytes:,} ({readable(self.most_bytes)})")]
        out += [(f"  {part}", f"{size:,}") for part, size in self.working.items() if size]
        out += [("memory to record", f"{readable(self.memory['record'])} besides the training itself")]
        streamed, at_once = readable(self.memory["evaluate"]), readable(self.memory["sample"])
        out += [(f"memory for {self.samples} draws", f"{streamed} in groups, {at_once} at once")]
        if self.speeds is not None:
            write, sample = duration(self.seconds["write"]), duration(self.seconds["sample"])
            out += [("time to write", f"{write} at {readable(self.speeds.write)}/s"), ("time to draw", sample)]
        if self.free_disk is not None:
            out += [("free on disk", f"{readable(self.free_disk)} ({self.place})")]
        if self.free_memory is not None:
            out += [("free memory", readable(self.free_memory))]
        missing = [f"{readable(size)} of {what}" for what, size in self.shortage.items()]
        if self.free_disk is not None or self.free_memory is not None:
            out += [("fits", "no, missing " + " and ".join(missing) if missing else "yes")]
        return out

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.lines())
        return "\n".join(f"{what.ljust(width)}  {value}" for what, value in self.lines())

    def _smaller(self) -> str:
        """What would fit on a disk that is too small."""
        room = self.free_disk or 0
        others = {
            "8-bit rows (bfp8) take": self._with(format=format_of("bfp8")).most_bytes,
            "4-bit rows (bfp4) take": self._with(format=format_of("bfp4")).most_bytes,
            "a window of the newest 20 rows takes": self._with(keep=Window(20)).most_bytes,
        }
        ways = [f"{what} {readable(size)}" for what, size in others.items() if size <= room]
        if self.keep == "all":
            most = _most_iterates(lambda iterates: self._with(iterates=iterates).most_bytes, room)
            ways.insert(0, f"{most:,} iterates fit")
        return "; ".join(ways) if ways else "free some space or name another place"

    def _with(self, *, format: Format | None = None, keep: Keep | None = None, iterates: int | None = None) -> "Plan":
        return plan(
            self.weights,
            iterates=self.iterates if iterates is None else iterates,
            format=self.format if format is None else format,
            keep=self.keep if keep is None else keep,
            checkpoint="checkpoint" in self.disk,
        )


def plan(
    weights: int | Layout,
    *,
    iterates: int | None = None,
    format: Format | torch.dtype | str = "fp32",
    keep: Keep = "all",
    where: str | Path | None = None,
    samples: int = 30,
    budget: int | None = None,
    ram: int | None = None,
    checkpoint: bool = False,
    measure: bool = False,
) -> Plan:
    """Say what recording `iterates` of a model will take, from the real layout of a log on disk.

    Args:
        weights: P, or the model's `Layout` (then the manifest's size is exact, else one page of 4 KiB is taken).
        iterates: how many will be recorded; None for as many as fit into `budget`, or into the free disk.
        format: how a row is stored, as for `RowLog`.
        keep: which rows are kept, as for `Moments`.
        where: the directory (or ":memory:", or a device-DAX node) the rows will go to; looked up, never written to
            unless `measure`. None: nothing is looked up.
        samples: draws that will be taken at once.
        budget: bytes of disk that may be used.
        ram: bytes of memory that may be used; None for what is free now, if `where` is given.
        checkpoint: count the checkpoint of a training run with momentum as well.
        measure: measure the disk's and the processor's speed with a scratch file, about a second.

    Raises `CapacityError` when not one iterate fits, `StoreError` when `measure` cannot write.
    """
    layout = weights if isinstance(weights, Layout) else None
    size = weights.size if isinstance(weights, Layout) else weights
    chosen = format_of(format)
    if size < 1 or samples < 1 or (iterates is not None and iterates < 1):
        raise CapacityError(f"{size} weights, {iterates} iterates, {samples} draws; wanted at least 1 of each")
    place = None if where is None else str(where)
    in_memory = place == ":memory:"
    room, free = (None, ram) if where is None else _look_up(where, ram)
    if budget is not None and not in_memory:
        room = budget if room is None else min(room, budget)

    def with_iterates(count: int) -> Plan:
        disk, working = disk_parts(size, layout, count, chosen, keep, checkpoint=checkpoint, staged=not in_memory)
        memory = memory_parts(size, count, chosen, keep, samples, checkpoint=checkpoint)
        if in_memory:
            memory["record"] += sum(disk.values())
            memory["evaluate"] += sum(disk.values())
            disk, working = {}, {}
        return Plan(size, count, chosen, keep, samples, disk, working, memory, place, room, free)

    if iterates is None:
        limit = free if in_memory else room
        if limit is None:
            raise CapacityError("neither iterates nor a budget was given; say one of them, or where the rows will go")
        iterates = _most_iterates(
            lambda count: _needed(with_iterates(count), in_memory=in_memory),
            budget if in_memory and budget is not None else limit,
        )
        if iterates == 0:
            needed = readable(_needed(with_iterates(1), in_memory=in_memory))
            raise CapacityError(f"not one iterate of {size:,} weights fits into {readable(limit)}; it needs {needed}")
    planned = with_iterates(iterates)
    if not measure:
        return planned
    speeds = measure_speeds(Path.cwd() if where is None or in_memory else Path(where))
    return replace(planned, speeds=speeds)


def _needed(planned: Plan, *, in_memory: bool) -> int:
    return planned.memory["record"] if in_memory else planned.most_bytes


def _look_up(where: str | Path, ram: int | None) -> tuple[int | None, int | None]:
    memory = free_memory() if ram is None else ram
    if str(where) == ":memory:":
        return None, memory
    limit = medium_of(where).limit
    return (free_disk(Path(where)) if limit is None else limit), memory


def _most_iterates(needed: Callable[[int], int], limit: int) -> int:
    """The largest count whose `needed` bytes are within `limit`, by doubling and bisection; 0 if there is none."""
    if needed(1) > limit:
        return 0
    high = 2
    while needed(high) <= limit:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= limit else (low, middle)
    return low

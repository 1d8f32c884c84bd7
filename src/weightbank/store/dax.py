r"""A log on a device-DAX node (persistent memory, CXL memory): named parts of one mapped range, without file calls.

Little-endian. Bytes 0 to 8 say whose the device is: `WBDAX 1\n`, or `WBDAX 0\n` while it is being prepared. Two copies
of the table of parts, at 4 KiB and at 1 MiB, are written in turn: generation u64, length u32, crc32 of these 12 bytes
and the text u32, then the text, a JSON object {name: [offset, capacity, size]}. A kill at any moment leaves one whole
copy. The parts begin at 2 MiB. Developed against a plain file in the node's place: no persistent memory was at hand.
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CapacityError, CorruptError, StoreError
from weightbank.store.media import Bytes
from weightbank.store.memory import ArrayBlob
from weightbank.store.node import MappedNode, Persistence

_PAGE, _HUGE = 4096, 2 << 20
_AREA, _COPIES, _ROOM = 2 << 20, (_PAGE, 1 << 20), (1 << 20) - _PAGE
_PREPARING, _OURS = b"WBDAX 0\n", b"WBDAX 1\n"
_HEAD = struct.Struct("<QII")
_TRIES, _PAUSE_SECONDS = 20, 0.005


@dataclass(frozen=True)
class _Part:
    """Where a blob lies on the device, the bytes kept for it, and how many of them are in use."""

    offset: int
    capacity: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.capacity


class DaxDevice:
    """A `Medium` on a device-DAX character device such as `/dev/dax0.0`, which can be mapped and nothing else.

    Args:
        path: the node. Mapped read-only until it is locked for writing.
        sysfs: where `<major>:<minor>/size` is found, by default `/sys/dev/char`. If it is given, a plain file may
            take the node's place.
        erase: start with an empty device whatever is on it now; it happens when the device is first locked.

    Without `erase`, a device is written to only if it holds our parts or its first 2 MiB are zeros. Parts smaller than
    2 MiB start at multiples of 4 KiB, others of 2 MiB; a part is zeroed as it grows, so nothing of a former log shows
    through; the room of removed and replaced parts is used again. The table holds about 19,000 parts.

    Raises `StoreError` if this is no such node or holds something else, `CorruptError` if both tables are damaged.
    """

    staged = False

    def __init__(self, path: str | Path, *, sysfs: str | Path | None = None, erase: bool = False) -> None:
        self.path = Path(path)
        self._node = MappedNode(self.path, sysfs)
        self._erase = erase
        self._table: dict[str, _Part] = {}
        self._generation = 0
        self._heads: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return str(self.path)

    @property
    def limit(self) -> int:
        """Bytes of the device."""
        return self._node.size

    @property
    def persistence(self) -> Persistence:
        """What `sync` does; known once the device is locked for writing, "none" before.

        "libpmem": `pmem_persist` flushes the CPU caches: what was synced survives a power loss if the memory does.
        "msync": the kernel is asked, where it lets us (a plain file in the node's place). "none": stores survive the
        death of the process, and a power loss only where the platform flushes its caches by itself (eADR).
        """
        return self._node.persistence

    def exists(self, name: str) -> bool:
        return name in self._parts()

    def open(self, name: str, *, writable: bool, capacity: int = 0) -> "DaxBlob":
        """Open the part `name`; a new one has `capacity` bytes in one piece kept for it, or as many as there are."""
        if writable:
            self._become_writer()
            if name not in self._table:
                room = min(_up(capacity, _PAGE), self._largest())
                self._commit({**self._table, name: _Part(self._gap(name, room), room, 0)})
        self._part(name)
        return DaxBlob(self, name, writable)

    def read(self, name: str, limit: int) -> bytes:
        while True:
            size, generation = self._part(name).size, self._generation
            if size > limit:
                raise CorruptError(f"{self.path}: {name} has {size:,} bytes, more than {limit:,}: not one of our parts")
            data = self.used(name).tobytes()
            if self._part(name) and self._generation == generation:
                return data

    def replace(self, name: str, data: bytes) -> None:
        self._become_writer()
        room = _up(len(data), _PAGE)
        part = _Part(self._gap(name, room), room, len(data))
        self._node.put(part.offset, data)
        self._commit({**self._table, name: part})

    def remove(self, name: str) -> None:
        if self.exists(name):
            self._become_writer()
            self._commit({other: part for other, part in self._table.items() if other != name})

    def lock(self) -> None:
        self._node.lock()
        self._heads = ()
        try:
            if not self._erase:
                self._refresh()
            if self._erase or self._node.data[:8].tobytes() != _OURS:
                self._prepare()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Stop being the writer; reading maps the device again, read-only."""
        self._node.release()

    def sizes(self) -> dict[str, int]:
        return {name: part.size for name, part in self._parts().items()}

    # for DaxBlob ------------------------------------------------------------------------------------------------

    def used(self, name: str) -> Bytes:
        """The bytes in use of one part, in place; read-only unless the device is locked."""
        part = self._part(name)
        return self._node.data[part.offset : part.offset + part.size]

    def resize(self, name: str, size: int) -> None:
        """Use `size` bytes of a part, new ones zero; it is extended or moved if its room is too small."""
        old = self._part(name)
        new = replace(old, size=size) if size <= old.capacity else self._larger(name, old, size)
        if new.offset != old.offset:
            self._node.put(new.offset, self.used(name))
        if size > old.size:
            self._node.clear(new.offset + old.size, size - old.size)
        self._commit({**self._table, name: new})

    def persist(self, name: str, start: int, stop: int) -> None:
        """Make bytes `start` to `stop` of a part survive a power loss, as far as `persistence` says."""
        self._node.persist(self._part(name).offset + start, stop - start)

    # the table --------------------------------------------------------------------------------------------------

    def _become_writer(self) -> None:
        if not self._node.locked:
            self.lock()

    def _part(self, name: str) -> _Part:
        part = self._parts().get(name)
        if part is None:
            raise StoreError(
                f"{self.path}: no {name} on this device; there are: {', '.join(self._table) or 'no parts'}"
            )
        return part

    def _parts(self) -> dict[str, _Part]:
        if not self._node.locked and not self._erase:
            self._refresh()
        return self._table

    def _refresh(self) -> None:
        """Read the newer whole copy of the table, unless neither changed; another process may be writing one."""
        data = self._node.data
        for _ in range(_TRIES):
            mark = data[:8].tobytes()
            if mark != _OURS:
                self._check_blank(data, mark)
                self._table, self._generation, self._heads = {}, 0, ()
                return
            heads = tuple(data[at : at + _HEAD.size].tobytes() for at in _COPIES)
            if heads == self._heads:
                return
            whole = [copy for copy in (_read_copy(data, at) for at in _COPIES) if copy is not None]
            if whole:
                generation, text = max(whole)
                self._table = _parse(text, self.limit, self.path)
                self._generation, self._heads = generation, heads
                return
            time.sleep(_PAUSE_SECONDS)
        raise CorruptError(
            f"{self.path}: both copies of the table of parts are damaged, so nothing on the device can be found; "
            "start anew with DaxDevice(path, erase=True)"
        )

    def _check_blank(self, data: Bytes, mark: bytes) -> None:
        if data[:_AREA].any() and data[:8].tobytes() not in (_PREPARING, _OURS):
            raise StoreError(
                f"{self.path}: no log here, and the device is not blank: it begins with {mark!r}; name another device, "
                "or lose what it holds with DaxDevice(path, erase=True)"
            )

    def _commit(self, table: dict[str, _Part]) -> None:
        """Write the table over its older copy, head last: who has read the head can rely on the text."""
        text = json.dumps({name: [part.offset, part.capacity, part.size] for name, part in table.items()}).encode()
        if len(text) > _ROOM - _HEAD.size:
            raise CapacityError(
                f"{self.path}: no room for {len(table):,} parts in its table of {_ROOM:,} bytes; what was committed is "
                "safe: record on in a directory"
            )
        generation = self._generation + 1
        at = _COPIES[generation % 2]
        start = struct.pack("<QI", generation, len(text))
        self._node.put(at + _HEAD.size, text)
        self._node.put(at, start + crc32(start + text).to_bytes(4, "little"))
        self._table, self._generation = table, generation

    def _prepare(self) -> None:
        """Make the device ours and empty; until the last step, an interrupted attempt is seen as such."""
        self._node.put(0, _PREPARING)
        self._node.clear(len(_PREPARING), _AREA - len(_PREPARING))
        self._generation = 0
        self._commit({})
        self._node.put(0, _OURS)
        self._erase = False

    def _gap(self, name: str, room: int) -> int:
        """Where the first free piece of `room` bytes begins."""
        unit = _HUGE if room >= _HUGE else _PAGE
        for start, stop in self._free():
            if stop - _up(start, unit) >= room:
                return _up(start, unit)
        raise CapacityError(
            f"{self.path}: {name} needs {room:,} bytes; of the {self.limit:,} of the device, {self._largest():,} are "
            "free in one piece: what was committed is safe; use a larger device, fewer rows, or a directory"
        )

    def _largest(self) -> int:
        """The largest part that `_gap` would find room for."""
        return max(max(stop - _up(start, _HUGE), min(stop - start, _HUGE - _PAGE)) for start, stop in self._free())

    def _free(self) -> Iterator[tuple[int, int]]:
        """Where nothing lies, in order."""
        start = _AREA
        for part in sorted(self._table.values(), key=lambda part: part.offset):
            yield start, max(start, part.offset)
            start = max(start, part.end)
        yield start, self.limit

    def _larger(self, name: str, part: _Part, size: int) -> _Part:
        """The part with room for `size` bytes: extended where it lies if what follows is free, else elsewhere."""
        room = _up(size, _PAGE)
        following = min(
            (other.offset for other in self._table.values() if other.offset >= part.end), default=self.limit
        )
        if part.capacity and part.offset + room <= following:
            return _Part(part.offset, room, size)
        return _Part(self._gap(name, room), room, size)


class DaxBlob:
    """One part of a device; reading and writing are copies from and to mapped memory."""

    def __init__(self, device: DaxDevice, name: str, writable: bool) -> None:
        self._device, self._name, self._writable = device, name, writable
        self._dirty: tuple[int, int] | None = None
        if writable and self.size:  # a killed writer may have left something unsynced
            self._dirty = (0, self.size)

    @property
    def size(self) -> int:
        return self._device.used(self._name).size

    def read_into(self, offset: int, out: Bytes) -> None:
        self._array().read_into(offset, out)

    def read_strided(self, offset: int, stride: int, out: UInt8[np.ndarray, "R B"]) -> None:
        self._array().read_strided(offset, stride, out)

    def write(self, offset: int, data: Bytes | bytes) -> None:
        self._check_writable()
        self._array().write(offset, data)
        start, stop = self._dirty or (offset, offset)
        self._dirty = min(start, offset), max(stop, offset + len(data))

    def reserve(self, size: int) -> None:
        self._check_writable()
        if size > self.size:
            self._device.resize(self._name, size)

    def trim(self, size: int) -> None:
        """Use only `size` bytes from now on; the room stays kept for this part."""
        self._check_writable()
        if size < self.size:
            self._device.resize(self._name, size)

    def sync(self) -> None:
        if self._dirty is not None:
            self._device.persist(self._name, *self._dirty)
            self._dirty = None

    def close(self) -> None:
        """The device keeps the mapping."""

    def _array(self) -> ArrayBlob:
        return ArrayBlob(f"{self._device!r}: {self._name}", self._device.used(self._name))

    def _check_writable(self) -> None:
        if not (self._writable and self._device.used(self._name).flags.writeable):
            raise StoreError(f"{self._device!r}: {self._name} is open read-only here; lock it and open it for writing")


def _read_copy(data: Bytes, at: int) -> tuple[int, bytes] | None:
    """Generation and text of the table at `at`, or None if it is not whole."""
    head = data[at : at + _HEAD.size].tobytes()
    generation, length, checksum = _HEAD.unpack(head)
    if generation == 0 or length > _ROOM - _HEAD.size:
        return None
    text = data[at + _HEAD.size : at + _HEAD.size + length].tobytes()
    return (generation, text) if crc32(head[:12] + text) == checksum else None


def _parse(text: bytes, limit: int, path: Path) -> dict[str, _Part]:
    """The table of parts, each inside the device and apart from the others; `CorruptError` otherwise."""
    try:
        table = {name: _Part(*values) for name, values in json.loads(text).items()}
        free = _AREA
        for name, part in sorted(table.items(), key=lambda item: (item[1].offset, item[1].capacity)):
            whole = all(type(value) is int for value in (part.offset, part.capacity, part.size))
            if not (whole and part.offset >= free and 0 <= part.size <= part.capacity and part.end <= limit):
                raise CorruptError(
                    f"{path}: {name} is said to use {part.size} of {part.capacity} bytes at {part.offset}; parts lie "
                    f"apart between {_AREA:,} and {limit:,} (is this the device that was written?)"
                )
            free = part.end
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{path}: its table of parts cannot be read: {error}") from error
    return table


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit

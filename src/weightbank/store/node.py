"""A device-DAX node, or a plain file in its place, mapped into memory: plain stores, and what makes them durable."""

import ctypes
import ctypes.util
import errno
import mmap
import os
import stat
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from weightbank.errors import StoreError
from weightbank.store.media import Bytes, take_lock

Persistence = Literal["libpmem", "msync", "none"]

_ALIGN, _SMALLEST = 2 << 20, 4 << 20
_NO_MSYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_HELP = "`daxctl list` shows the devices, `daxctl reconfigure-device --mode=devdax` makes one that can be mapped"


class MappedNode:
    """All bytes of a node in one shared mapping, read-only until it is locked; only open, flock, mmap and stat.

    `sysfs` holds `<major>:<minor>/size` and `align`, as `/sys/dev/char` does; if it is given, `path` may be a plain
    file. Raises `StoreError` for anything that is not a mappable device of at least 4 MiB.
    """

    def __init__(self, path: Path, sysfs: str | Path | None) -> None:
        self.path = path
        self.persistence: Persistence = "none"
        self._map: mmap.mmap | None = None
        self._bytes: Bytes | None = None
        self._lock = -1
        self.character, self.size = _describe(path, sysfs)
        _NODES.add(self)

    @property
    def locked(self) -> bool:
        """Whether we are the writer."""
        return self._lock >= 0

    @property
    def data(self) -> Bytes:
        """The whole node, in place."""
        if self._bytes is None:
            self._bytes = self._mapped(os.O_RDONLY, mmap.ACCESS_READ)
        return self._bytes

    def lock(self) -> None:
        """Become the only writer, or raise `LockedError`; map the node for writing."""
        descriptor = self._open(os.O_RDWR)
        take_lock(descriptor, self.path)
        self._lock = descriptor
        try:
            self._bytes = self._mapped(os.O_RDWR, mmap.ACCESS_WRITE)
            self.persistence = self._promise()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give up lock and mapping; the latter goes when the last array that looks into it does."""
        self._map = self._bytes = None
        self.persistence = "none"
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        self.release()

    def put(self, offset: int, data: Bytes | bytes) -> None:
        """Store bytes and persist them before anything is stored after them."""
        source = np.frombuffer(data, np.uint8)
        self.data[offset : offset + source.size] = source
        self.persist(offset, source.size)

    def clear(self, offset: int, length: int) -> None:
        """Store zeros and persist them."""
        self.data[offset : offset + length] = 0
        self.persist(offset, length)

    def persist(self, offset: int, length: int) -> None:
        """Make a range survive a power loss, as far as `persistence` says."""
        if self.persistence == "libpmem":
            flush = pmem_persist()
            assert flush is not None
            flush(self.data.ctypes.data + offset, length)
        elif self.persistence == "msync":
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._msync(start, offset + length - start)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self.path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(
                f"{self.path}: cannot open: {error.strerror}; give your user the node (chown, chmod or a udev rule); "
                f"{_HELP}"
            ) from error

    def _mapped(self, flags: int, access: int) -> Bytes:
        """Map through a descriptor of its own: a mapping keeps a copy of it, which must not keep the lock."""
        descriptor = self._open(flags)
        try:
            self._map = mmap.mmap(descriptor, self.size, access=access)
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}: cannot map its {self.size:,} bytes: {error}; {_HELP}") from error
        finally:
            os.close(descriptor)
        return np.frombuffer(self._map, np.uint8)

    def _promise(self) -> Persistence:
        """Flushing caches makes stores durable on the device itself, not in a plain file in its place."""
        if self.character and pmem_persist() is not None:
            return "libpmem"
        try:
            self._msync(0, mmap.PAGESIZE)
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_MSYNC:
                return "none"
            raise
        return "msync"

    def _msync(self, start: int, length: int) -> None:
        assert self._map is not None
        try:
            self._map.flush(start, length)
        except OSError as error:
            raise StoreError(f"{self.path}: msync: {error.strerror}; what was synced before is safe") from error


_NODES: weakref.WeakSet[MappedNode] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child, such as a data loader's worker, neither has its parent's lock nor keeps it alive."""
    for node in _NODES:
        node.release()


os.register_at_fork(after_in_child=_release_in_child)


@lru_cache(maxsize=1)
def pmem_persist() -> Callable[[int, int], None] | None:
    """`pmem_persist(address, length)` of libpmem, which flushes CPU caches, or None where it is not installed."""
    name = ctypes.util.find_library("pmem")
    if name is None:
        return None
    try:
        function = ctypes.CDLL(name).pmem_persist
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t], None

    def persist(address: int, length: int) -> None:
        function(address, length)

    return persist


def _describe(path: Path, sysfs: str | Path | None) -> tuple[bool, int]:
    """Whether `path` is a character device, and how many bytes of it can be mapped."""
    try:
        status = path.stat()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; {_HELP}") from error
    character = stat.S_ISCHR(status.st_mode)
    if sysfs is None and not character:
        raise StoreError(f"{path}: not a character device; {_HELP}. For a file system name a directory")
    entry = Path(sysfs or "/sys/dev/char") / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    kind = (entry / "subsystem").resolve().name
    if kind not in ("dax", "subsystem"):
        raise StoreError(f"{path}: a device of kind '{kind}', wanted kind 'dax'; {_HELP}")
    size, align = _number(entry / "size"), _number(entry / "align") or _ALIGN
    usable = size // align * align
    if usable < _SMALLEST:
        raise StoreError(f"{path}: {size:,} bytes according to {entry / 'size'}, wanted {_SMALLEST:,} or more; {_HELP}")
    return character, usable


def _number(file: Path) -> int:
    """The number in a sysfs file, decimal or 0x..., 0 if there is none."""
    try:
        return max(0, int(file.read_text(), 0))
    except (OSError, ValueError):
        return 0

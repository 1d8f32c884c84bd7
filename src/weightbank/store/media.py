"""Where the bytes of a log live: named blobs in a directory of files, or in memory."""

import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from weightbank.errors import CapacityError, CorruptError, LockedError, StoreError

Bytes = UInt8[np.ndarray, " B"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@runtime_checkable
class Blob(Protocol):
    """Bytes with real space behind them up to `size`; offsets and lengths count bytes."""

    @property
    def size(self) -> int:
        """Bytes allocated."""
        ...

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fill `out` from `offset` on; `CorruptError` if the blob ends before."""
        ...

    def read_strided(self, offset: int, stride: int, out: UInt8[np.ndarray, "R B"]) -> None:
        """Fill row r of `out` from `offset + r * stride`."""
        ...

    def write(self, offset: int, data: Bytes | bytes) -> None:
        """Write `data` at `offset`, within the reserved size."""
        ...

    def reserve(self, size: int) -> None:
        """Make at least `size` bytes really exist, or raise `CapacityError` and change nothing."""
        ...

    def trim(self, size: int) -> None:
        """Give back what lies beyond `size`."""
        ...

    def sync(self) -> None:
        """Return when all written bytes survive a power loss (as far as the medium can promise)."""
        ...

    def close(self) -> None:
        """Release the handle."""
        ...


@runtime_checkable
class Medium(Protocol):
    """A place that holds blobs by name."""

    @property
    def staged(self) -> bool:
        """Whether writing is slow enough that a writer thread and staging buffers pay."""
        ...

    @property
    def limit(self) -> int | None:
        """Total bytes this place can hold, where that is fixed."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the blob `name` is there."""
        ...

    def open(self, name: str, *, writable: bool, capacity: int = 0) -> Blob:
        """Open the blob `name`; a writable one is created if missing, with room to grow to `capacity` bytes."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """The whole small blob `name`; `CorruptError` if it is longer than `limit`."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Create or replace the small blob `name` in one step that survives a power loss."""
        ...

    def remove(self, name: str) -> None:
        """Forget the blob `name` if it is there."""
        ...

    def lock(self) -> None:
        """Become the only writer, or raise `LockedError`."""
        ...

    def unlock(self) -> None:
        """Stop being the writer."""
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes allocated per blob."""
        ...


@contextmanager
def errors_named(what: str, wanted: int = 0) -> Iterator[None]:
    """Turn a full disk, quota or file-size limit into `CapacityError`, other failures into `StoreError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            room = f"{wanted:,} bytes" if wanted else "more"
            raise CapacityError(
                f"{what}: no room for {room} ({error.strerror}); what was committed is safe: "
                "free some space or move the directory, then open it again"
            ) from error
        raise StoreError(f"{what}: {error.strerror or error}") from error


def allocate(count: int, what: str) -> Bytes:
    """`count` bytes of memory, not filled, or `CapacityError`."""
    try:
        return np.empty(count, np.uint8)
    except (MemoryError, ValueError) as error:  # the latter beyond 2^63
        raise CapacityError(f"{what}: no memory for {count:,} bytes") from error


class FileBlob:
    """A file, read with preadv and written with pwrite; space is allocated before it is used."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path = path
        self._fd = -1
        flags = (os.O_RDWR | os.O_CREAT) if writable else os.O_RDONLY
        with errors_named(f"{path}: cannot open"):
            self._new = writable and not path.exists()
            self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            plain = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if not plain:
            self.close()
            raise CorruptError(f"{path}: not a plain file")

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file, whatever it is called by now."""
        found = os.fstat(self._fd)
        return found.st_dev, found.st_ino

    def opened(self) -> BinaryIO:
        """The same file once more, as an object of its own."""
        return open(os.dup(self._fd), "rb")

    def read_into(self, offset: int, out: Bytes) -> None:
        self._check(offset, out.size)
        done, view = 0, out.data
        with errors_named(str(self._path)):
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if count == 0:
                    self._check(offset, out.size)
                done += count

    def read_strided(self, offset: int, stride: int, out: UInt8[np.ndarray, "R B"]) -> None:
        rows, width = out.shape
        if rows:
            self._check(offset, (rows - 1) * stride + width)
        with errors_named(str(self._path)):
            for row in range(rows):
                if os.preadv(self._fd, [out[row]], offset + row * stride) != width:
                    self.read_into(offset + row * stride, out[row])

    def write(self, offset: int, data: Bytes | bytes) -> None:
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        with errors_named(str(self._path), len(view)):
            while len(view):
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def reserve(self, size: int) -> None:
        before = self.size
        if size <= before:
            return
        try:
            with errors_named(str(self._path), size - before):
                os.posix_fallocate(self._fd, before, size - before)
        except StoreError:
            self.trim(before)
            raise

    def trim(self, size: int) -> None:
        if size < self.size:
            with errors_named(str(self._path)):
                os.ftruncate(self._fd, size)

    def sync(self) -> None:
        with errors_named(str(self._path)):
            os.fdatasync(self._fd)
            if self._new:
                sync_directory(self._path.parent)
                self._new = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise CorruptError(f"{self._path}: ends at byte {self.size:,}, wanted {offset:,} to {offset + length:,}")


class Directory:
    """A directory on any file system: NVMe, tmpfs, a DAX mount, a CXL-backed disk."""

    staged = True
    limit: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1
        _DIRECTORIES.add(self)

    def __repr__(self) -> str:
        return str(self.path)

    def exists(self, name: str) -> bool:
        with errors_named(str(self.path)):
            return (self.path / name).is_file()

    def open(self, name: str, *, writable: bool, capacity: int = 0) -> FileBlob:
        if writable:
            self._make()
        return FileBlob(self.path / name, writable=writable)

    def read(self, name: str, limit: int) -> bytes:
        blob = FileBlob(self.path / name, writable=False)
        try:
            if blob.size > limit:
                raise CorruptError(f"{self.path / name}: more than {limit:,} bytes, not one of our files")
            out = allocate(blob.size, str(self.path / name))
            blob.read_into(0, out)
        finally:
            blob.close()
        return out.tobytes()

    def replace(self, name: str, data: bytes) -> None:
        self._make()
        partial = self.path / f"{name}.partial"
        try:
            with errors_named(str(partial), len(data)):
                with open(partial, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self.path / name)
                sync_directory(self.path)
        except StoreError:
            partial.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        with errors_named(str(self.path / name)):
            (self.path / name).unlink(missing_ok=True)

    def lock(self) -> None:
        self._make()
        with errors_named(f"{self.path}: cannot lock"):
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        take_lock(descriptor, self.path)
        self._lock = descriptor

    def unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        with errors_named(str(self.path)):
            for file in sorted(self.path.iterdir()) if self.path.is_dir() else []:
                try:
                    status = file.stat()
                except FileNotFoundError:  # removed by the writer just now
                    continue
                if stat.S_ISREG(status.st_mode):
                    found[file.name] = min(status.st_blocks * 512, -(-status.st_size // 4096) * 4096)
        return found

    def _make(self) -> None:
        with errors_named(f"{self.path}: cannot make this directory"):
            self.path.mkdir(parents=True, exist_ok=True)


_DIRECTORIES: weakref.WeakSet[Directory] = weakref.WeakSet()


def _forget_locks() -> None:
    """In a forked child, such as a data loader's worker: the lock is its parent's alone, and ends with it."""
    for directory in _DIRECTORIES:
        directory.unlock()


os.register_at_fork(after_in_child=_forget_locks)


def take_lock(descriptor: int, path: Path) -> None:
    """Lock an open file for writing or raise `LockedError`; the kernel drops it when the process dies."""
    try:
        with errors_named(f"{path}: cannot lock"):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except StoreError as error:
        os.close(descriptor)
        if not isinstance(error.__cause__, BlockingIOError):
            raise
        raise LockedError(
            f"{path}: another writer has this log open; close it, or read along with RowLog(..., read_only=True)"
        ) from error


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

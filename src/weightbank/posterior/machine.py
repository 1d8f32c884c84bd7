"""What this machine has: room on a disk, free memory, and this process's peak."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def existing(path: Path) -> Path:
    """The path itself or its nearest ancestor that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_disk(path: Path) -> int:
    """Bytes this user can still write on the file system of `path`, which need not exist yet."""
    return shutil.disk_usage(existing(path)).free


def free_memory() -> int | None:
    """Bytes of memory a process can still take: the kernel's estimate, or its control group's limit if that is less."""
    available = _field(Path("/proc/meminfo"), "MemAvailable")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            left = int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text())
            available = left if available is None else min(available, left)
    except (OSError, ValueError):
        pass
    return None if available is None else max(0, available)


class Peak:
    """The most memory the process has held inside a `with peak_memory()` block, above what it held before."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block's peak resident memory; None where Linux does not let the mark be reset."""
    found = Peak()
    status = Path("/proc/self/status")
    before = None
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _field(status, "VmRSS")
    except OSError:
        pass
    yield found
    highest = _field(status, "VmHWM")
    if before is not None and highest is not None:
        found.bytes = max(0, highest - before)


def _give_back() -> None:
    """Have the C library return memory that is free but still held, which would hide what is taken next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _field(file: Path, name: str) -> int | None:
    """A line such as `VmHWM:  1234 kB` in bytes."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def drop_from_cache(descriptor: int) -> None:
    """Ask the kernel to forget a file's pages, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

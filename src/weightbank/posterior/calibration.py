"""How fast this machine writes, reads and draws, measured in less than a second."""

import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from weightbank.errors import StoreError
from weightbank.posterior.machine import drop_from_cache, existing

_PIECE, _MOST, _SECONDS = 4 << 20, 256 << 20, 0.3
_DRAWS, _ROWS, _COLUMNS = 16, 256, 16_384


@dataclass(frozen=True)
class Speeds:
    """Bytes per second to and from new blocks of a disk, multiplications and normal numbers per second."""

    write: float
    read: float
    multiply: float
    normals: float


def measure_speeds(path: Path) -> Speeds:
    """Write, sync, read back and remove a scratch file on the file system of `path`; multiply and draw in memory.

    Takes about a second where a sync is not slow itself. Raises `StoreError` where nothing can be written.
    """
    place = existing(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=".weightbank-speed-", dir=place)
    except OSError as error:
        raise StoreError(f"{place}: cannot write a scratch file: {error.strerror}") from error
    try:
        write, read = _disk(descriptor)
    except OSError as error:
        raise StoreError(f"{place}: cannot measure its speed: {error.strerror}") from error
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            Path(name).unlink()
    return Speeds(write, read, *_arithmetic())


def _disk(descriptor: int) -> tuple[float, float]:
    piece = os.urandom(_PIECE)
    done, start = 0, time.perf_counter()
    while done < _MOST and time.perf_counter() - start < _SECONDS / 2:
        done += os.pwrite(descriptor, piece, done)
        os.fdatasync(descriptor)
    write = done / (time.perf_counter() - start)
    drop_from_cache(descriptor)
    total, done, start = done, 0, time.perf_counter()
    while done < total and time.perf_counter() - start < _SECONDS / 2:
        done += len(os.pread(descriptor, _PIECE, done))
    return write, done / (time.perf_counter() - start)


def _arithmetic() -> tuple[float, float]:
    left, right, out = torch.ones(_DRAWS, _ROWS), torch.ones(_ROWS, _COLUMNS), torch.zeros(_DRAWS, _COLUMNS)
    generator = torch.Generator().manual_seed(0)
    out.addmm_(left, right)
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS / 4:
        out.addmm_(left, right)
        rounds += 1
    multiply = rounds * left.numel() * _COLUMNS / (time.perf_counter() - start)
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < _SECONDS / 4:
        torch.randn(_COLUMNS, generator=generator)
        rounds += 1
    return multiply, rounds * _COLUMNS / (time.perf_counter() - start)

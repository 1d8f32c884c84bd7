"""Small instruments: peak memory, bytes written, times, one process per contender, ratios as a table."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


def peak_megabytes() -> float:
    """Peak resident memory of this process so far (VmHWM), in MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def bytes_written() -> int:
    """Bytes this process caused to be written to disk (/proc/self/io)."""
    return int(Path("/proc/self/io").read_text().split("\nwrite_bytes:")[1].split()[0])


def times(work: Callable[[int], object], count: int) -> np.ndarray:
    """Milliseconds of `work(0)`, `work(1)`, ..., shape (count,)."""
    taken = np.empty(count)
    for number in range(count):
        start = time.perf_counter()
        work(number)
        taken[number] = (time.perf_counter() - start) * 1e3
    return taken


def in_own_process(script: str, *arguments: str) -> dict:
    """Run this benchmark's script again for one contender and read the JSON of its last line."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextmanager
def limited_data(limit: int) -> Iterator[None]:
    """Let this process allocate at most `limit` bytes of private memory (RLIMIT_DATA)."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def table(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print rows under each other, columns aligned."""
    print(f"\n{title}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

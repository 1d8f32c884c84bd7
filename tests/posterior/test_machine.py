import shutil
from pathlib import Path

import numpy as np
import pytest

from weightbank.posterior.machine import existing, free_disk, free_memory, peak_memory


def test_the_nearest_existing_ancestor_is_looked_up(tmp_path: Path) -> None:
    assert existing(tmp_path / "not" / "yet") == tmp_path
    # another process may write between the two calls
    assert abs(free_disk(tmp_path / "not" / "yet") - shutil.disk_usage(tmp_path).free) < 1 << 30


def test_free_memory_is_less_than_all_memory() -> None:
    free = free_memory()
    if free is None:
        pytest.skip("no /proc/meminfo here")
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    assert 0 < free <= int(total.split()[1]) * 1024


def test_peak_memory_sees_what_was_freed_again_and_nothing_from_before() -> None:
    def touch(megabytes: int) -> None:
        np.ones(megabytes << 20, np.uint8).sum()

    touch(150)
    with peak_memory() as first:
        touch(64)
    with peak_memory() as second:
        pass
    if first.bytes is None or second.bytes is None:
        pytest.skip("the peak cannot be reset here")
    # the kernel adds pages up in batches per thread; the interpreter itself may grow a little
    assert 60 << 20 <= first.bytes < 100 << 20
    assert second.bytes < 16 << 20


def test_memory_that_was_free_but_held_counts_when_it_is_taken_again() -> None:
    def take(pieces: int) -> list[bytes]:
        return [bytes(100_000) for _ in range(pieces)]  # below the size that the C library maps of its own

    held = take(500)
    last = held[-1:]
    del held
    with peak_memory() as found:
        take(300)
    if found.bytes is None:
        pytest.skip("the peak cannot be reset here")
    assert last
    assert 25 << 20 <= found.bytes < 45 << 20

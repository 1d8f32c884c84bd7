"""The thread behind `append`: waits while the disk is slower than the caller, and hands on what went wrong."""

import errno
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from weightbank.errors import CapacityError, StoreError
from weightbank.store import RowLog
from weightbank.store.staging import SLOTS

P = 50_000  # 200 kB a row


class Gate:
    """A disk whose writes wait until they are let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed = threading.Semaphore(0)
        self.threads: set[str] = set()
        self._real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._write)

    def _write(self, descriptor: int, data: Any, offset: int) -> int:
        self.threads.add(threading.current_thread().name)
        if len(data) > 64:  # a row, not a record
            assert self.allowed.acquire(timeout=30)
        return self._real(descriptor, data, offset)


@contextmanager
def filling(log: RowLog, count: int) -> Iterator[list[int]]:
    """Another thread that appends `count` rows; the list of those it has done."""
    done: list[int] = []

    def fill() -> None:
        for number in range(count):
            log.append(torch.full((P,), float(number)))
            done.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    yield done
    thread.join(30)
    assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_append_waits_once_all_slots_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(P)
        gate = Gate(monkeypatch)
        with filling(log, 12) as done:
            for let_through in range(8):
                until(lambda expected=SLOTS + let_through: len(done) == expected)  # type: ignore[misc]
                time.sleep(0.02)
                assert len(done) == SLOTS + let_through  # no further row until one is stored
                assert log.committed == let_through
                gate.allowed.release()
            gate.allowed.release(100)
        log.flush()
        assert [int(log.row(number)[-1]) for number in range(12)] == list(range(12))
        assert gate.threads == {"weightbank-writer"}


def test_append_does_not_wait_while_a_slot_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(P)
        gate = Gate(monkeypatch)
        for number in range(100):
            gate.allowed.release()
            log.append(torch.full((P,), float(number)))  # a wait would never end: this thread lets rows through
            until(lambda: log.committed >= log.count - SLOTS + 1)
        assert log.count == 100


def test_memory_does_not_grow_behind_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(P)
        row = torch.ones(P)
        log.append(row)
        log.flush()
        real = os.pwrite

        def slowly(descriptor: int, data: Any, offset: int) -> int:
            time.sleep(0.002)
            return real(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", slowly)
        tracemalloc.start()
        try:
            for _ in range(50):
                log.append(row)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * P / 2  # not one copy of a row


def fail_writes(monkeypatch: pytest.MonkeyPatch, code: int, after: int) -> None:
    """All writes fail once `after` of them have not."""
    real, count = os.pwrite, 0

    def write(descriptor: int, data: Any, offset: int) -> int:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)


@pytest.mark.parametrize("after", [0, 1, 6, 7], ids=["first row", "its record", "fourth row", "its record"])
@pytest.mark.parametrize("call", ["append", "flush", "read"])
def test_failed_write_reaches_the_caller_and_staged_rows_are_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    log = RowLog(tmp_path / "log")
    log.create(P)
    appended = 0

    def use() -> None:
        nonlocal appended
        while appended < (1000 if call == "append" else SLOTS):
            log.append(torch.full((P,), float(appended)))
            appended += 1
        log.row(0) if call == "read" else log.flush()

    with monkeypatch.context() as patch:
        fail_writes(patch, errno.EIO, after)
        for again in (use, log.flush, lambda: log.append(torch.ones(P)), log.close):
            with pytest.raises(StoreError, match="Input/output error"):
                again()
    assert appended <= after // 2 + SLOTS
    with RowLog(tmp_path / "log") as log:
        assert log.count == appended
        assert [int(log.row(number)[-1]) for number in range(appended)] == list(range(appended))
        log.append(torch.ones(P))


def test_write_that_fails_last_is_raised_by_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RowLog(tmp_path / "log")
    log.create(P)
    with monkeypatch.context() as patch:
        fail_writes(patch, errno.EIO, 0)
        log.append(torch.ones(P))
        with pytest.raises(StoreError, match="Input/output error"):
            log.close()
    with RowLog(tmp_path / "log") as log:
        assert log.count == 1


def test_full_disk_behind_the_callers_back_is_a_capacity_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy-on-write file systems and quotas can refuse what was allocated before."""
    log = RowLog(tmp_path / "log")
    log.create(P)
    with monkeypatch.context() as patch:
        fail_writes(patch, errno.EDQUOT, 0)
        log.append(torch.ones(P))
        with pytest.raises(CapacityError, match="Disk quota exceeded"):
            log.flush()
        with pytest.raises(CapacityError):
            log.close()
    with RowLog(tmp_path / "log") as log:
        assert log.count == 1


def test_error_in_the_body_of_a_with_is_not_hidden_by_one_on_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RowLog(tmp_path / "log")
    log.create(P)
    fail_writes(monkeypatch, errno.EIO, 0)
    log.append(torch.ones(P))
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError


def test_interrupted_encoding_gives_its_slot_back(tmp_path: Path) -> None:
    def interrupt(columns: slice, out: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with RowLog(tmp_path / "log") as log:
        log.create(P)
        for _ in range(SLOTS + 1):
            with pytest.raises(KeyboardInterrupt):
                log.append(torch.ones(P), prepare=interrupt)
        log.append(torch.ones(P))
        assert log.count == 1

"""Simulated power cuts: of all pages that were not synced, some reach the disk, and some do not.

The simulation knows each file as it was when it was last synced. A cut keeps that, and of every 4 KiB page that has
changed since, the old or the new one; of the size, the old or the new one; of files never synced, or not at all.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from weightbank.distributions import Moments, Window
from weightbank.layout import Entry, Layout
from weightbank.store import RowLog, segments

PAGE = 4096
RENAMED = {"manifest.json", "reference.bin", "lock"}  # written aside, synced and renamed, all in one step


class Disk:
    """What would be left of the files in a directory if the power went now."""

    def __init__(self, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.where = where
        self.synced: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.moving = threading.RLock()
        for call in ("pwrite", "fdatasync", "ftruncate", "posix_fallocate"):
            monkeypatch.setattr(os, call, self._watched(call, getattr(os, call)))

    def _watched(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(descriptor: int, *arguments: Any) -> Any:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            with self.moving:
                done = real(descriptor, *arguments)
                if path.parent == self.where:
                    self.calls.append((call, path.name))
                    if call == "fdatasync":
                        self.synced[path.name] = path.read_bytes()
            return done

        return watched

    def cut(self, left: Path, chance: random.Random) -> None:
        """Write what is left to the directory `left`."""
        left.mkdir()
        share = chance.choice([0.1, 0.5, 0.9])
        for file in sorted(self.where.iterdir()):
            now, then = file.read_bytes(), self.synced.get(file.name)
            if file.name in RENAMED:
                then = now
            if then is None:
                if chance.random() < 0.3:
                    continue
                then = b""
            size = chance.choice([len(now), len(then)])
            pages = []
            for start in range(0, size, PAGE):
                old, new = then[start : start + PAGE].ljust(PAGE, b"\0"), now[start : start + PAGE].ljust(PAGE, b"\0")
                pages.append(new if chance.random() < share else old)
            (left / file.name).write_bytes(b"".join(pages)[:size])


def iterates(count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    return [torch.randn(size, generator=generator) for _ in range(count)]


class Bare:
    """Rows without moments, so that nothing but the group asks for syncs."""

    def __init__(self, log: RowLog, size: int, window: int | None) -> None:
        self.rows = log
        log.create(size, keep=window)

    def update(self, theta: Tensor, *, step: int) -> None:
        self.rows.append(theta - iterates(1, len(theta))[0], step=step)

    def close(self) -> None:
        self.rows.close()


@pytest.mark.parametrize(("bare", "window"), [(False, None), (False, 3), (True, 7)], ids=["all", "window", "bare ring"])
def test_committed_rows_and_their_moments_survive_power_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool, window: int | None
) -> None:
    cut_often(tmp_path, monkeypatch, 3000, window, bare=bare, trials=2)


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True], ids=["moments", "bare"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("size", [100, 9000])
def test_committed_rows_and_their_moments_survive_many_power_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, window: int | None, bare: bool
) -> None:
    cut_often(tmp_path, monkeypatch, size, window, bare=bare, trials=5)


def cut_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, window: int | None, *, bare: bool, trials: int
) -> None:
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", PAGE)  # small segments, so that rows span several
    monkeypatch.setattr(segments, "_SEGMENT_ROWS", 8)
    chance = random.Random(size)
    layout = Layout((Entry("w", (size,), 0, torch.float32),))
    thetas, kept = iterates(60, size), 0
    running, expected = Moments(layout), [(torch.empty(0), torch.empty(0))]
    for theta in thetas:
        running.update(theta)
        expected.append((running.mean(), running.variance()))
    for trial in range(trials):
        where = tmp_path / f"{trial}"
        with monkeypatch.context() as patch:
            disk = Disk(where, patch)
            log = RowLog(where, durability="commit", group=16)
            keep = None if window is None else Window(window)
            recorder = Bare(log, size, window) if bare else Moments(layout, rows=log, keep=keep)
            cuts = sorted(chance.sample(range(55), 6))
            for number, theta in enumerate(thetas):
                recorder.update(theta, step=number)
                if number in cuts:
                    time.sleep(chance.choice([0, 0.001]))
                    with disk.moving:
                        committed = log.committed
                        disk.cut(tmp_path / f"{trial} {number}", chance)
                    kept += check(tmp_path / f"{trial} {number}", layout, thetas, expected, committed)
            recorder.close()
    assert kept > 20 * trials  # most rows were committed before the power went


def check(
    where: Path, layout: Layout, thetas: list[Tensor], expected: list[tuple[Tensor, Tensor]], committed: int
) -> int:
    """At least the committed rows are there, every row is right, and recording goes on."""
    if not (where / "commits.bin").exists():
        assert committed == 0
        return 0
    for more in (0, 1):
        with RowLog(where, durability="commit", group=16) as log:
            count = log.count
            assert count >= committed + more
            assert log.damaged() == []
            for number in range(log.first, count):
                assert torch.equal(log.row(number), thetas[number] - thetas[0])
            if log.manifest.layout is None:
                Bare(log, layout.size, log.manifest.keep).update(thetas[count], step=count)
                continue
            moments = Moments(layout, rows=log)
            assert moments.count == count
            if count:
                assert torch.equal(moments.mean(), expected[count][0])
                assert torch.equal(moments.variance(), expected[count][1])
            moments.update(thetas[count])
    return committed


def test_rows_are_synced_before_the_records_that_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path / "log", monkeypatch)
    with RowLog(tmp_path / "log", durability="commit", group=1) as log:
        log.create(100)
        disk.calls.clear()
        for _ in range(3):
            log.append(torch.ones(100))
            log.flush()
    written = [call for call in disk.calls if call[0] != "posix_fallocate"]
    once = [("pwrite", "rows-000000.bin"), ("pwrite", "commits.bin")]
    once += [("fdatasync", "rows-000000.bin"), ("fdatasync", "commits.bin")]
    assert written[:12] == 3 * once


@pytest.mark.parametrize(("keep", "group"), [(None, 8), (6, 5)], ids=["all", "ring"])
def test_one_sync_per_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int | None, group: int) -> None:
    disk = Disk(tmp_path / "log", monkeypatch)
    with RowLog(tmp_path / "log", durability="commit", group=8) as log:
        log.create(100, keep=keep)
        disk.calls.clear()
        for _ in range(40):
            log.append(torch.ones(100))
        log.flush(durable=False)
        assert log.committed == 40
        assert disk.calls.count(("fdatasync", "rows-000000.bin")) == 40 // group
        assert disk.calls.count(("fdatasync", "commits.bin")) == 40 // group


def test_flush_returns_when_all_rows_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path / "log", monkeypatch)
    with RowLog(tmp_path / "log", durability="commit") as log:
        log.create(100)
        log.append(torch.ones(100))
        log.flush()
        assert log.committed == 1
        assert disk.synced["rows-000000.bin"][:400] == torch.ones(100).numpy().tobytes()
        assert disk.synced["commits.bin"][:4] == b"WBRC"


def test_idle_log_is_synced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(tmp_path / "log", monkeypatch)
    monkeypatch.setattr("weightbank.store.writer._IDLE_SECONDS", 0.02)
    with RowLog(tmp_path / "log", durability="commit") as log:
        log.create(100)
        log.append(torch.ones(100))
        deadline = time.monotonic() + 10
        while log.committed < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert log.committed == 1
        calls = len(disk.calls)
        time.sleep(0.1)
        assert len(disk.calls) == calls


def test_earlier_rows_are_synced_when_a_log_becomes_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RowLog(tmp_path / "log") as log:
        log.create(100)
        log.append(torch.ones(100))
    disk = Disk(tmp_path / "log", monkeypatch)
    with RowLog(tmp_path / "log", durability="commit") as log:
        assert log.committed == 1
        assert {"rows-000000.bin", "commits.bin"} <= set(disk.synced)


@pytest.mark.parametrize("durability", ["process", "none"])
def test_no_sync_at_all_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any) -> None:
    log = RowLog(tmp_path / "log", durability=durability)
    log.create(100)
    disk = Disk(tmp_path / "log", monkeypatch)
    fsyncs: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsyncs.append)
        for _ in range(100):
            log.append(torch.ones(100))
        log.flush()
        assert (tmp_path / "log" / "staging.bin").exists() == (durability == "process")
        log.close()
    assert "fdatasync" not in dict(disk.calls)
    assert fsyncs == []
    with RowLog(tmp_path / "log", durability=durability) as log:
        log.append(torch.ones(100))
        log.flush(durable=True)
        assert ("fdatasync", "commits.bin") in disk.calls

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import pooled
import weightbank as wb
from weightbank.errors import ResumeError
from weightbank.paging import Score, tune
from weightbank.paging.tied import Tied


def stopping(step: Callable[[Tied, int], float], at: int) -> Callable[[Tied, int], float]:
    """A step that is interrupted the `at`-th time."""
    count = 0

    def stop(self: Tied, number: int) -> float:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return step(self, number)

    return stop


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, BatchNorm, a network without data and an interruption after the second check."""
    torch.manual_seed(0)
    data = wb.data.digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 10))
    drop = wb.Task("drop", model, F.cross_entropy, data.train, data.test, batch_size=32)
    one, _, conv = pooled.tasks()
    pools = []
    for kill in (False, True):
        pool = pooled.filled()
        pool.add(drop, importance=torch.ones(drop.layout.size))
        options: dict[str, Any] = {"steps": 24, "every": 6, "checkpoint": tmp_path / "tune.state", "tolerance": 1.0}
        if kill:
            with monkeypatch.context() as patch:
                patch.setattr(Tied, "step", stopping(Tied.step, 15))
                with pytest.raises(KeyboardInterrupt):
                    tune(pool, [one, conv, drop], **options)
            assert (tmp_path / "tune.state").exists()
            with pytest.raises(ResumeError, match="another run"):
                tune(pool, [one, conv, drop], **{**options, "lr": 0.5})
        done = tune(pool, [one, conv, drop], **options)
        assert [step for step, _ in done.history] == [0, 6, 12, 18, 24]
        assert not (tmp_path / "tune.state").exists()
        pools.append((pool, done))
    assert pooled.same(pools[0][0], pools[1][0])
    assert pools[0][1].history == pools[1][1].history


def test_a_killed_run_resumes_to_the_same_bits_with_loaders_that_draw_from_the_global_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With validation data of their own the loaders are taken as they are, here without a generator."""
    data = wb.data.digits()
    x, y = data.train[0][:600], data.train[1][:600]
    judged = {"one": pooled.examples(100)}
    pools = []
    for kill in (False, True):
        loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
        old = pooled.tasks()[0]
        one = wb.Task("one", old.model, old.loss, loader, old.test)
        pool = pooled.filled()
        options: dict[str, Any] = {"steps": 24, "every": 7, "checkpoint": tmp_path / "tune.state", "tolerance": 1.0}
        options |= {"validation": judged}
        if kill:
            for stop in (9, 9):  # the second time in the step after the resumed one's check
                with monkeypatch.context() as patch:
                    patch.setattr(Tied, "step", stopping(Tied.step, stop))
                    with pytest.raises(KeyboardInterrupt):
                        tune(pool, [one], **options)
        tune(pool, [one], **options)
        pools.append(pool)
    assert pooled.same(*pools)


@pytest.mark.parametrize("stop", [None, 2, 5, 6])
def test_who_was_hurt_earlier_stays_apart_in_further_attempts(
    stop: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scores blame 'one' until it is apart, and then 'two': only the third attempt, with both apart, can succeed.

    Also when it was killed in any of the three, after a check.
    """
    pool = pooled.filled(pooled.CAPACITY + 4_000, reserve=4_000)
    apart: dict[str, bool] = {}
    judged: list[str] = []

    def score(task: wb.Task, bound: Any, data: Any) -> Score:
        judged.append(task.name)
        apart[task.name] = any(extent.exclusive for extent in bound.tenant.placement.extents)
        blamed = {"one": True, "two": apart["one"], "conv": False}[task.name] and not apart[task.name]
        return Score("accuracy", 0.1 if blamed and len(judged) > 3 else 0.9, 100)

    monkeypatch.setattr(sys.modules["weightbank.paging.tune"], "score", score)
    options: dict[str, Any] = {"steps": 2, "every": 1, "lr": 1e-9, "checkpoint": tmp_path / "tune.state"}
    if stop is not None:
        with monkeypatch.context() as patch:
            patch.setattr(Tied, "step", stopping(Tied.step, stop))
            with pytest.raises(KeyboardInterrupt):
                tune(pool, pooled.tasks(), retries=2, **options)
        for other in ({"retries": 0}, {"seed": 1}, {"tolerance": 0.5}):
            with pytest.raises(ResumeError, match="another run"):
                tune(pool, pooled.tasks(), **{**options, "retries": 2, **other})
    done = tune(pool, pooled.tasks(), retries=2, **options)
    assert done.committed
    assert [step for step, _ in done.history] == list(range(7))
    assert done.steps == 6
    assert set(done.apart) == {"one", "two"}
    for name in pool:
        extents = pool.generation.tenants[name].placement.extents
        assert sum(extent.length for extent in extents if extent.exclusive) == done.apart.get(name, 0)

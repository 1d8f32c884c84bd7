import json
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

from weightbank.cim import (
    Cells,
    Device,
    Sweep,
    WriteVerify,
    by_cell,
    by_weight,
    compensate,
    graded,
    mean_over_chips,
    rank,
    sweep,
)
from weightbank.cim.montecarlo import Passes, Scorer
from weightbank.curvature import ggn
from weightbank.errors import CorruptError, DataError, LayoutError, ResumeError
from weightbank.task import Task

NOISY = Device(4, 1, sigma=0.5)
BUDGETS = (0.0, 0.2, 1.0)


class Counted:
    """A model's task whose forward passes are counted; it stops by Ctrl-C after `most` of them."""

    def __init__(self, task: Task, most: float = math.inf) -> None:
        self.batches, self.most, predict = 0, most, task.predict

        def counting(*arguments, **options):
            self.batches += 1
            if self.batches > self.most:
                raise KeyboardInterrupt
            return predict(*arguments, **options)

        self.task = Task(task.name, task.model, task.loss, task.train, task.test)
        self.task.predict = counting


@pytest.fixture(scope="module")
def scores(trained):
    return ggn(trained)


@pytest.fixture
def methods(trained, scores):
    cells = Cells.of(trained, NOISY)
    return {"magnitude": by_weight(cells, rank(cells.relative)), "cells": by_cell(cells, scores)}


def same(a: Sweep, b: Sweep) -> bool:
    """Equal but for single values, which a file does not keep."""
    return a.to_dict() == b.to_dict()


def test_every_row_is_the_mean_over_the_chips_of_one_seed(trained, methods):
    found = sweep(trained, methods, BUDGETS, chips=30, seed=5)
    assert [(row.method, row.budget) for row in found.rows] == [(m, b) for b in BUDGETS for m in methods]
    for row in found.rows:
        way = methods[row.method](row.budget)
        passes = 3  # of 12 batches
        alone = mean_over_chips(trained, way.law, passes=passes, generator=torch.Generator().manual_seed(5))
        assert row.accuracy == alone
        assert row.accuracy.n == 36
        assert row.write_cycles == way.write_cycles
        assert row.reads == way.reads


def test_the_band_is_that_of_student_at_95_percent(trained, methods):
    found = sweep(trained, methods, (0.2,), chips=30, seed=5).rows[1]
    scorer = Scorer(trained)
    chips = Passes(scorer, methods["cells"](0.2).law, torch.Generator().manual_seed(5))
    for _ in range(3):
        chips.add()
    parts = (torch.stack(chips.rows).var(0) * scorer.weights**2 / 3).double()
    freedom = float(parts.sum() ** 2 / (parts**2 / 2).sum())
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(float(parts.sum()))
    # The library's quantile is a series in 1 / freedom, good to 1 % from 11 degrees on.
    assert freedom > 11
    assert found.high - found.accuracy.mean == pytest.approx(half, rel=0.01)
    assert found.accuracy.mean - found.low == pytest.approx(half, rel=0.01)


def test_verifying_everything_nears_the_exact_weights(trained, methods):
    found = sweep(trained, methods, BUDGETS, chips=48)
    nothing, everything = found.of("cells")[0], found.of("cells")[-1]
    assert found.clean - everything.accuracy.mean < 0.01  # 0.03 instead of 0.5 level steps
    assert found.clean - nothing.accuracy.mean > 0.05
    assert everything.low > nothing.high


def test_a_row_is_done_at_the_standard_error_asked_for(trained, methods):
    found = sweep(trained, methods, (0.2, 1.0), chips=1200, stderr=0.006)
    assert all(row.accuracy.stderr < 0.006 for row in found.rows)
    first, *_, last = (row.accuracy for row in found.rows)
    assert 48 < first.n < 1200
    assert last.n == 48  # quiet chips are known well enough after the four passes of the least
    one_pass_fewer = sweep(trained, methods, (0.2,), chips=first.n - 12)
    assert one_pass_fewer.rows[0].accuracy.stderr >= 0.006


def test_what_verifies_nothing_is_measured_once_for_all_methods(trained, methods):
    counted = Counted(trained)
    found = sweep(counted.task, methods, (0.0, 1.0), chips=24)
    # A clean pass, two passes for nothing, two for everything: masks of weights and of all their cells are one chip.
    assert counted.batches == 12 * (1 + 2 + 2)
    assert [row.method for row in found.rows] == ["magnitude", "cells"] * 2


def test_compensated_chips_are_not_taken_for_unread_ones(trained, methods, scores):
    cells = Cells.of(trained, NOISY)
    found = sweep(trained, {**methods, "all": compensate(cells, scores)}, (0.0,), chips=24)
    assert found.of("all")[0].accuracy.mean > found.of("cells")[0].accuracy.mean


def test_a_stopped_sweep_goes_on_and_ends_the_same(trained, methods, tmp_path):
    path = tmp_path / "sweep.json"
    whole = sweep(trained, methods, BUDGETS, chips=24)
    with pytest.raises(KeyboardInterrupt):
        sweep(Counted(trained, most=12 * 6).task, methods, BUDGETS, chips=24, path=path)
    part = Sweep.load(path)
    assert same(part, replace(whole, rows=whole.rows[:3]))
    counted = Counted(trained)
    assert same(sweep(counted.task, methods, BUDGETS, chips=24, path=path), whole)
    assert same(Sweep.load(path), whole)
    assert counted.batches == 12 * (1 + 2 + 2)  # clean, the cells at 0.2, and everything verified
    again = Counted(trained)
    assert same(sweep(again.task, methods, BUDGETS, chips=24, path=path), whole)
    assert again.batches == 12


def test_rows_not_reached_again_survive_a_second_stop(trained, methods, tmp_path):
    path = tmp_path / "sweep.json"
    whole = sweep(trained, methods, BUDGETS, chips=24, path=path)
    with pytest.raises(KeyboardInterrupt):
        sweep(Counted(trained, most=12 * 2).task, methods, (0.1, *BUDGETS), chips=24, path=path)
    assert same(Sweep.load(path), whole)


def test_more_methods_add_only_their_rows(trained, methods, scores, tmp_path):
    path = tmp_path / "sweep.json"
    sweep(trained, methods, BUDGETS, chips=24, path=path)
    counted = Counted(trained)
    more = {**methods, "graded": graded(Cells.of(trained, NOISY), scores)}
    found = sweep(counted.task, more, BUDGETS, chips=24, path=path)
    assert found.methods == ("magnitude", "cells", "graded")
    assert counted.batches == 12 * (1 + 2 * 2)  # two budgets of the new method; nothing read is known
    assert sweep(trained, more, BUDGETS, chips=36, path=path).rows[0].accuracy.n == 36


def test_another_loop_or_device_is_another_row(trained, scores, tmp_path):
    path = tmp_path / "sweep.json"
    cells = Cells.of(trained, NOISY)
    ways = {"0.06": by_cell(cells, scores, WriteVerify()), "0.2": by_cell(cells, scores, WriteVerify(tolerance=0.2))}
    found = sweep(trained, ways, (0.5,), chips=24, path=path)
    assert len({row.key for row in found.rows}) == 2
    louder = Cells.of(trained, replace(NOISY, sigma=0.6))
    other = sweep(trained, {"0.06": by_cell(louder, scores, WriteVerify())}, (0.5,), chips=24, path=path)
    assert other.rows[0].key not in {row.key for row in found.rows}


def test_devices_with_functions_can_be_swept(trained, scores):
    cells = Cells.of(trained, Device(4, 1, sigma=lambda g: 0.3 + 0.2 * g, verified_sigma=0.03))
    assert len(sweep(trained, {"cells": by_cell(cells, scores)}, (0.0, 1.0), chips=24).rows) == 2


def test_a_file_keeps_everything_and_csv_the_numbers(trained, methods, tmp_path):
    found = sweep(trained, methods, BUDGETS, chips=24)
    found.save(tmp_path / "a.json")
    assert same(Sweep.load(tmp_path / "a.json"), found)
    head, *lines = found.csv().splitlines()
    assert head.split(",")[:2] == ["method", "budget"]
    columns = dict(zip(head.split(","), lines[3].split(","), strict=True))
    assert columns["method"] == "cells"
    assert float(columns["accuracy"]) == found.rows[3].accuracy.mean
    assert float(columns["high"]) == found.rows[3].high
    assert int(columns["chips"]) == 24


def test_files_of_others_are_refused_and_left_alone(trained, methods, tmp_path):
    path = tmp_path / "sweep.json"
    sweep(trained, methods, (0.2,), chips=24, path=path)
    before = path.read_bytes()
    x, y = next(iter(trained.batches("test")))
    with pytest.raises(ResumeError, match="other data"):
        sweep(trained, methods, (0.2,), chips=24, data=(x, (y + 1) % 4), path=path)
    moved = Cells.of(trained, NOISY, trained.theta() * 1.01)
    with pytest.raises(ResumeError, match="other weights"):
        sweep(trained, {"moved": by_weight(moved, rank(moved.relative))}, (0.2,), chips=24, path=path)
    assert path.read_bytes() == before
    for text in ("", "[]", '{"weightbank": "something"}', before[:-200].decode(), "[" * 100_000):
        path.write_text(text)
        with pytest.raises(CorruptError):
            Sweep.load(path)
    document = json.loads(before)
    for name, wrong in (("low", "x"), ("accuracy", 3), ("budget", True), ("high", None)):
        document["rows"][0] = {**document["rows"][0], name: wrong}
        path.write_text(json.dumps(document))
        with pytest.raises(CorruptError):
            Sweep.load(path)


def test_what_cannot_be_swept_is_refused(trained, methods):
    with pytest.raises(DataError, match="0 methods"):
        sweep(trained, {})
    with pytest.raises(DataError, match="between 0 and 1"):
        sweep(trained, methods, (0.5, 5.0))
    with pytest.raises(DataError, match="positive"):
        sweep(trained, methods, stderr=0.0)
    moved = Cells.of(trained, NOISY, trained.theta() * 1.01)
    with pytest.raises(LayoutError, match="other weights than the first"):
        sweep(trained, {**methods, "moved": by_weight(moved, rank(moved.relative))}, (0.2,), chips=24)
    with pytest.raises(DataError, match="magnitude, cells"):
        sweep(trained, methods, (0.0,), chips=24).of("best")

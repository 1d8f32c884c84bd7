from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from weightbank.cim import Cells, Device, Retraining, WriteVerify, by_weight, each_chip, rank, retrain_in_situ, sweep
from weightbank.distributions import Point
from weightbank.distributions.distribution import seed_of
from weightbank.errors import DataError, DivergedError, LayoutError
from weightbank.task import Task


def test_without_steps_it_is_a_chip_written_once(trained):
    device = Device(6, 2, sigma=0.3, quantized=True)
    cells = Cells.of(trained, device)
    found = retrain_in_situ(trained, cells, steps=0, learning_rate=0.1, generator=torch.Generator().manual_seed(1))
    assert found.ledger.effort.extra == 0
    levels = torch.stack(list(cells.levels()))
    sign = torch.where(cells.theta < 0, -1.0, 1.0)
    value = torch.tensor(device.places) @ (sign * levels + found.ledger.errors)
    expected = torch.where(cells.on_device, value * cells.scale, cells.theta)
    torch.testing.assert_close(found.theta, expected)
    assert float(found.ledger.errors[:, cells.on_device].std()) == pytest.approx(0.3, rel=0.1)


def test_on_exact_cells_it_is_gradient_descent_on_the_grid(trained):
    """Weights stay within half a step of plain SGD whose gradient is taken on the grid; clipped at the scale."""
    device = Device(12, 3, sigma=0.0, verified_sigma=0.0)
    cells = Cells.of(trained, device)
    seen = []
    trained.train.generator.manual_seed(0)
    found = retrain_in_situ(
        trained, cells, steps=3, learning_rate=0.05, momentum=0.5, each_step=lambda step, theta, _: seen.append(theta)
    )
    trained.train.generator.manual_seed(0)
    wanted, speed, theta = cells.theta, 0.0, Cells.of(trained, device).theta
    grid = cells.scale / 2**12
    theta = torch.where(grid > 0, (theta / grid).round().clamp(-(2**12) + 1, 2**12 - 1) * grid, theta)
    for (x, y), after in zip(trained.batches("train"), seen, strict=False):
        free = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(trained.predict(free, x), y), free)
        speed = 0.5 * speed + gradient
        wanted = wanted - 0.05 * speed
        theta = torch.where(grid > 0, (wanted / grid).round().clamp(-(2**12) + 1, 2**12 - 1) * grid, wanted)
        torch.testing.assert_close(after, theta, atol=2e-5, rtol=1e-5)
    assert torch.equal(found.theta, seen[-1])
    trained.train.generator.manual_seed(0)


def test_only_changed_cells_are_written_and_redrawn(trained):
    cells = Cells.of(trained, Device(6, 2, sigma=0.3))
    books = []
    retrain_in_situ(trained, cells, steps=8, learning_rate=0.05, each_step=lambda *now: books.append(now[2]))
    for before, after in pairwise(books):
        written = after.pulses > before.pulses
        assert (after.pulses - before.pulses).max() == 1
        assert torch.equal(after.errors[~written], before.errors[~written])
        assert (after.errors[written] != before.errors[written]).all()
        assert not written[:, ~cells.on_device].any()
    # Low cells change far more often than high ones.
    extra = (books[-1].pulses - 1).sum(1)
    assert extra[-1] > 3 * extra[0]


def test_retraining_repairs_a_chip_and_counts_what_it_took(trained):
    device = Device(8, 1, sigma=0.5)
    cells = Cells.of(trained, device)
    before, after, effort = [], [], []
    for seed in range(3):
        for steps, found in ((0, before), (60, after)):
            generator = torch.Generator().manual_seed(seed)
            chip = retrain_in_situ(trained, cells, steps=steps, learning_rate=0.03, generator=generator)
            found.append(each_chip(trained, Point(chip.theta, trained.layout), 1).mean)
        effort.append(chip.ledger.effort)
    assert sum(after) / 3 > sum(before) / 3 + 0.03
    assert effort[0].cells == 8 * cells.count == 8 * (6 * 20 + 20 * 4)  # the 24 biases are digital
    full = WriteVerify().outcome(0.5).effort(effort[0].cells)
    assert 0 < effort[0].write_cycles(full) < 5


BUDGETS = (0.0, 0.02, 0.05, 0.5)


def test_a_budget_is_spent_by_the_last_step_within_it(trained):
    """Each chip by `retrain_in_situ`, step by step: the last one whose extra pulses are within the budget."""
    cells = Cells.of(trained, Device(8, 1, sigma=0.5, verified_sigma=0.03))
    method = Retraining(trained, cells, learning_rate=0.01, chips=3, steps=40)
    scored = []

    def score(theta):
        scored.append(theta)
        return each_chip(trained, Point(theta, trained.layout), 1).mean

    trained.train.generator.manual_seed(77)
    state = trained.train.generator.get_state()
    seed = seed_of(torch.Generator().manual_seed(5))
    found = method.spent(BUDGETS[::-1], score, seed)
    assert torch.equal(trained.train.generator.get_state(), state)
    assert list(found) == list(BUDGETS)
    # The first chip is the one that retrain_in_situ makes of the same seed and order of batches.
    trained.train.generator.manual_seed(seed)
    start = retrain_in_situ(trained, cells, steps=0, learning_rate=1, generator=torch.Generator().manual_seed(5))
    states = [(start.theta, start.ledger)]
    generator = torch.Generator().manual_seed(5)
    retrain_in_situ(
        trained,
        cells,
        steps=40,
        learning_rate=0.01,
        generator=generator,
        each_step=lambda *now: states.append(now[1:]),
    )
    trained.train.generator.manual_seed(0)
    per_cell = WriteVerify.matching(cells.device).outcome(0.5).pulses - 1
    spent = [float((ledger.pulses - 1).clamp(min=0).sum()) / (8 * 200 * per_cell) for _, ledger in states]
    assert BUDGETS[2] < spent[-1] < BUDGETS[3]
    for budget in BUDGETS:
        last = sum(cycles <= budget for cycles in spent) - 1
        theta = states[last][0]
        assert any(torch.equal(theta, one) for one in scored)
        one = Retraining(trained, cells, learning_rate=0.01, chips=3, steps=40).spent([budget], score, seed)[budget]
        assert one.accuracy.values == found[budget].accuracy.values
        assert one.accuracy.values[0] == each_chip(trained, Point(theta, trained.layout), 1).mean
        assert found[budget].write_cycles <= budget
        assert abs(found[budget].write_cycles - spent[last]) < 0.05


def test_in_situ_retraining_is_a_method_of_a_sweep(trained, tmp_path):
    cells = Cells.of(trained, Device(8, 1, sigma=0.5, verified_sigma=0.03))
    ways = {
        "in situ": Retraining(trained, cells, learning_rate=0.005, chips=3, steps=60),
        "magnitude": by_weight(cells, rank(cells.relative)),
    }
    path = tmp_path / "sweep.json"
    found = sweep(trained, ways, BUDGETS, chips=24, path=path)
    rows = found.of("in situ")
    assert [row.budget for row in rows] == list(BUDGETS)
    assert [row.accuracy.n for row in rows] == [3] * 4
    spent = ways["in situ"].spent(BUDGETS, lambda theta: each_chip(trained, Point(theta, trained.layout), 1).mean)
    for row in rows:
        assert row.accuracy.mean == pytest.approx(spent[row.budget].accuracy.mean)
        half = stats.t.ppf(0.975, 2) * row.accuracy.stderr
        assert row.high - row.low == pytest.approx(2 * half, rel=0.05)  # student() is a series in 1 / freedom
        assert row.fraction == row.reads == 0
    assert rows[-1].accuracy.mean > rows[0].accuracy.mean + 0.02
    only = sweep(trained, {"magnitude": ways["magnitude"]}, BUDGETS, chips=24)
    assert [row.accuracy.to_dict() for row in only.rows] == [row.accuracy.to_dict() for row in found.of("magnitude")]
    # A second call computes nothing: every row is in the file.
    task = Task(trained.name, trained.model, trained.loss, [], trained.test)
    again = {"in situ": Retraining(task, cells, learning_rate=0.005, chips=3, steps=60), "magnitude": ways["magnitude"]}
    assert sweep(task, again, BUDGETS, chips=24, path=path).to_dict() == found.to_dict()
    again["in situ"] = Retraining(task, cells, learning_rate=0.006, chips=3, steps=60)
    with pytest.raises(DataError, match="no batch"):
        sweep(task, again, BUDGETS, chips=24, path=path)


def test_bad_methods_are_refused(trained):
    with pytest.raises(DataError, match="plain errors"):
        Retraining(trained, Cells.of(trained, Device(pairs=True)))
    with pytest.raises(DataError, match="chips=2"):
        Retraining(trained, Cells.of(trained, Device()), chips=2)
    with pytest.raises(DataError, match="no tolerance turns"):
        Retraining(trained, Cells.of(trained, Device(sigma=0.1, verified_sigma=0.1)))
    other = Cells.of(trained, Device(), trained.theta() + 1)
    cells = Cells.of(trained, Device())
    ways = {"magnitude": by_weight(cells, rank(cells.relative)), "in situ": Retraining(trained, other)}
    with pytest.raises(LayoutError, match="'in situ' programs other weights"):
        sweep(trained, ways)


def test_bad_requests_are_refused(trained):
    cells = Cells.of(trained, Device(pairs=True))
    with pytest.raises(DataError, match="plain errors"):
        retrain_in_situ(trained, cells, steps=1, learning_rate=0.1)
    with pytest.raises(DataError, match="learning_rate=0"):
        retrain_in_situ(trained, Cells.of(trained, Device()), steps=1, learning_rate=0.0)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(DivergedError, match="learning rate"):
        retrain_in_situ(trained, Cells.of(trained, Device()), steps=30, learning_rate=1e38, generator=generator)

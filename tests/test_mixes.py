"""Laws, rankings and importances of one job used in another, on the embedded digits; chips and draws are seeded."""

import copy
import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch.nn import functional as F

import pooled
import weightbank as wb
from weightbank.budget import expected_increase, measured_increase
from weightbank.budget.along import increase_along
from weightbank.cim import Cells, benefit, compare, mean_over_chips
from weightbank.curvature import ggn, ggn_sampled
from weightbank.data import digits
from weightbank.paging.through import Through, memory_layout, memory_of
from weightbank.zoo import mlp

DEVICE = wb.Device(weight_bits=8, cell_bits=1, sigma=0.6, verified_sigma=0.03)


@cache
def network(seed: int = 0) -> wb.Task:
    """2,410 weights, trained; nobody may change them. Test batches of 25 meet a chip each: 20 a pass."""
    torch.manual_seed(seed)
    data = digits()
    test = wb.TensorBatches(*data.test, 25)
    task = wb.Task(f"network {seed}", mlp(64, 32, 10), F.cross_entropy, data.train, test, batch_size=32)
    for _ in wb.epochs(task, torch.optim.Adam(task.model.parameters(), 3e-3), count=8):
        pass
    return task


def recorded(
    optimizer: Callable[..., torch.optim.Optimizer], format: str = "fp32", task: wb.Task | None = None
) -> wb.Moments:
    """Every fourth iterate of ten epochs, after two more, of a copy of the network."""
    task = network() if task is None else task
    data, model = digits(), copy.deepcopy(task.model)
    copied = wb.Task("copy", model, F.cross_entropy, data.train, data.test, batch_size=32)
    moments = wb.Moments(task.layout, rows=wb.RowLog(":memory:", format=format))

    def take(theta: torch.Tensor, *, step: int) -> None:
        if step > 80 and step % 4 == 0:
            moments.update(theta, step=step)

    for _ in wb.epochs(copied, optimizer(model.parameters()), count=12, each_step=take):
        pass
    return moments


def apart(one: wb.Estimate, other: wb.Estimate) -> float:
    """The difference in standard errors."""
    assert one.stderr is not None
    assert other.stderr is not None
    return (one.mean - other.mean) / math.hypot(one.stderr, other.stderr)


def test_a_posterior_in_eight_and_four_bit_rows_predicts_as_in_thirty_two() -> None:
    """Rows of the same run, a quarter and an eighth of the bytes: NLL within a tenth, accuracy within a point."""
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
    logs = {format: recorded(sgd, format) for format in ("fp32", "bfp8", "bfp4")}
    found = {format: wb.evaluate(network(), log.gaussian(), samples=20) for format, log in logs.items()}
    rows = {format: log.rows.format.row_bytes(log.layout.size) for format, log in logs.items() if log.rows}
    assert rows["bfp8"] < 0.26 * rows["fp32"]
    assert rows["bfp4"] < 0.14 * rows["fp32"]
    for format in ("bfp8", "bfp4"):
        assert found[format].nll.mean == pytest.approx(found["fp32"].nll.mean, rel=0.1)
        assert found[format].accuracy.mean == pytest.approx(found["fp32"].accuracy.mean, abs=0.01)
        rounding = logs[format].gaussian().variance() - logs["fp32"].gaussian().variance()
        assert float(rounding.abs().sum()) > 0  # they are not the same rows


def test_the_variance_of_iterates_ranks_weights_for_write_verify() -> None:
    """Adam's inverse variance and SGD's variance beat a random choice by three standard errors; neither the curvature.

    SGD moves a weight by its gradients, whose variance goes with the curvature, so that the ranking turns round: its
    inverse variance is worse than chance. Adam divides that out.
    """
    task = network()
    cells = Cells.of(task, DEVICE)
    adam = recorded(partial(torch.optim.Adam, lr=3e-3, betas=(0.9, 0.99))).variance()
    moving = adam > 1e-3 * adam.median()  # corners of the images are always blank: their weights never move
    sgd = recorded(partial(torch.optim.SGD, lr=0.02)).variance()
    orders = {
        "random": torch.randperm(task.layout.size, generator=torch.Generator().manual_seed(0)),
        "1 / Adam": wb.rank(torch.where(moving, 1 / adam, 0.0)),
        "SGD": wb.rank(sgd),
        "1 / SGD": wb.rank(1 / sgd.clamp(min=1e-30)),
        "curvature": wb.rank(benefit(ggn(task), cells)),
    }
    chips = {
        name: wb.program(task, DEVICE, wb.select(order, 0.2, among=cells.on_device)) for name, order in orders.items()
    }
    gained = compare(task, chips, passes=8).difference  # against the first, on the same 160 chips
    errors = {name: gain.mean / gain.stderr for name, gain in gained.items() if gain.stderr}
    assert errors["1 / Adam"] > 3
    assert errors["SGD"] > 3
    assert errors["1 / SGD"] < 0
    assert gained["curvature"].mean > gained["SGD"].mean > gained["1 / Adam"].mean


def test_variance_as_page_importance_makes_sharing_cheaper() -> None:
    """Two networks, pages placed and merged by the variance of SGD's iterates instead of evenly, before any tuning."""
    tasks = (network(0), network(1))
    sgd = {task.name: recorded(partial(torch.optim.SGD, lr=0.02), task=task).variance() for task in tasks}
    even = {name: torch.ones_like(variance) for name, variance in sgd.items()}
    for capacity in (3_200, 3_600):
        rises = []
        for importance in (sgd, even):
            pool = wb.Pool(capacity=capacity)
            for task in tasks:
                pool.add(task, importance=importance[task.name], placement="pages", page_size=16)
            rises.append(sum(measured_increase(task, pool[task.name], 1).mean for task in tasks))
        assert 0 < rises[0] < 0.9 * rises[1]


def test_a_network_trained_in_eight_bits_survives_a_device_if_a_tenth_is_verified() -> None:
    torch.manual_seed(3)
    data = digits()
    task = wb.Task(
        "8 bits", mlp(64, 32, 10), F.cross_entropy, data.train, wb.TensorBatches(*data.test, 25), batch_size=32
    )
    average = wb.Moments(task.layout, variance=False)
    with wb.Precision.swalp(bits=8).attached(task.model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(task.model.parameters(), lr=0.05, momentum=0.9))
        for epoch in wb.epochs(task, optimizer, count=12):
            if epoch >= 6:
                average.update(task.theta())
    theta = average.mean()
    task.layout.assign(task.model, theta)
    clean = wb.evaluate(task, theta).accuracy.mean
    assert clean > 0.95
    h, device = ggn(task), wb.Device(sigma=0.3, verified_sigma=0.03)
    order = wb.rank(benefit(h, Cells.of(task, device)))
    among = device.on_device(task.layout)
    chips = [wb.program(task, device, wb.select(order, share, among=among)) for share in (0.0, 0.1, 1.0)]
    none, tenth, whole = (mean_over_chips(task, chip, passes=3) for chip in chips)
    assert apart(tenth, none) > 3
    assert tenth.mean > clean - 0.08 > none.mean
    assert whole.mean == pytest.approx(clean, abs=0.005)
    quiet = wb.program(task, wb.Device(sigma=0.03))
    measured = measured_increase(task, quiet, 30, generator=torch.Generator().manual_seed(0))
    assert measured.mean == pytest.approx(expected_increase(h, quiet), rel=0.5)  # the factor that theory promises


@cache
def tuned() -> tuple[wb.Pool, tuple[wb.Task, ...]]:
    """Three networks of 7,458 weights in 6,400 positions, tuned; the tasks' own weights are those of the pool."""
    pool = pooled.filled(6_400)
    tasks = tuple(
        wb.Task(t.name, copy.deepcopy(t.model), t.loss, digits().train, digits().test) for t in pooled.tasks()
    )
    assert wb.tune(pool, tasks, steps=120, lr=3e-3).committed
    for task in tasks:
        task.layout.assign(task.model, pool[task.name].mean())
    return pool, tasks


def accuracies(law: wb.WeightDistribution, draws: int = 20) -> dict[str, wb.Estimate]:
    """Of single draws of the memory, seen by each network."""
    pool, tasks = tuned()
    return {
        task.name: wb.evaluate(
            task, Through(pool.generation.tenant(task.name), law), samples=draws, batch_norm="keep"
        ).draws["accuracy"]
        for task in tasks
    }


def test_a_pool_on_a_device_verifies_for_all_its_networks_at_once() -> None:
    """A tenth of the positions, chosen by the sum of the networks' curvatures; by chance it helps far less."""
    pool, tasks = tuned()
    h = memory_of(pool, {task.name: ggn_sampled(task) for task in tasks})
    cells = Cells.of(memory_layout(pool), wb.Device(sigma=0.3, verified_sigma=0.03, scale="channel"), memory_of(pool))
    best = wb.select(benefit(h, cells), 0.1, among=cells.on_device)
    chance = wb.select(torch.rand(pool.size, generator=torch.Generator().manual_seed(0)), 0.1, among=cells.on_device)
    ranked, random, whole = (
        accuracies(wb.Chip(cells, verified)) for verified in (best, chance, torch.ones(pool.size, dtype=torch.bool))
    )
    exact = {task.name: pooled.accuracy(pool, task.name) for task in tasks}
    assert min(exact.values()) > 0.88
    for name in exact:
        assert whole[name].mean > exact[name] - 0.01
        assert ranked[name].mean > random[name].mean
    together = [sum(found[name].mean for name in exact) / 3 for found in (ranked, random)]
    assert together[0] - together[1] > 0.05


def test_a_posterior_of_the_memory_is_one_for_every_network() -> None:
    """Rows of 6,400 numbers instead of 7,458, in 8 bits; draws and averages are as accurate as the tuned networks."""
    pool, tasks = tuned()
    memory = torch.nn.Parameter(memory_of(pool))
    moments = wb.Moments(memory_layout(pool), rows=wb.RowLog(":memory:", format="bfp8"))
    optimizer = torch.optim.SGD([memory], lr=0.01)
    for step, batches in enumerate(zip(*(task.batches() for task in tasks), strict=True)):
        optimizer.zero_grad()
        for task, (x, y) in zip(tasks, batches, strict=True):
            theta = pool.generation.tenant(task.name).placement.gather(memory)
            F.cross_entropy(task.predict(theta, x), y).backward()
        optimizer.step()
        moments.update(memory.detach(), step=step)
    assert moments.count == 11
    posterior = moments.gaussian()
    for task in tasks:
        seen = Through(pool.generation.tenant(task.name), posterior)
        assert float(seen.variance().max()) > 0
        found = wb.evaluate(task, seen, samples=10, batch_norm="keep")
        assert found.accuracy.mean > pooled.accuracy(pool, task.name) - 0.01
        assert float(found.variance.mean()) > 0  # the draws do differ


def test_shared_values_cost_what_gradient_and_whole_curvature_say() -> None:
    """A pool moves weights together, against which a diagonal is blind: a twentieth of the way, within a tenth."""
    task = network()
    pool = wb.Pool(capacity=3_600)
    for each in (network(1), task):
        pool.add(each, placement="pages", page_size=16)
    theta = task.theta()
    near = wb.Point(theta + 0.05 * (pool[task.name].mean() - theta), task.layout)
    measured = measured_increase(task, near, 1).mean
    assert increase_along(task, near, 1).mean == pytest.approx(measured, rel=0.1)
    assert not 0.5 < expected_increase(ggn(task), near, theta=theta) / measured < 2

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pooled
import weightbank as wb
from weightbank.errors import DataError, DivergedError, LayoutError
from weightbank.paging import Pool, Score, tune
from weightbank.paging.tied import Settings, Tied
from weightbank.streams import Stream


def forever(name: str, x: torch.Tensor, y: torch.Tensor) -> Stream:
    """The same minibatch again and again."""
    return Stream(name, [(x, y)], None, torch.device("cpu"))


@pytest.mark.parametrize("format", ["fp32", "bfp8"])
@pytest.mark.parametrize("placement", ["extents", "pages"])
def test_gradients_of_all_networks_meet_in_the_pool(placement: str, format: str) -> None:
    """Against autograd through an index into one vector; with 8 bits, straight through their rounding."""
    pool = pooled.filled(dtype=format, placement=placement)
    tasks = {task.name: task for task in pooled.tasks()}
    batches = {name: pooled.examples(20) for name in tasks}
    indices = {name: pool.generation.tenants[name].placement.gather(torch.arange(pool.size)) for name in pool}
    values = pool.generation.owner.values().clone().requires_grad_()
    total = torch.zeros(())
    for name, task in tasks.items():
        x, y = batches[name]
        model = copy.deepcopy(task.model).train()
        out = torch.func.functional_call(model, task.layout.unravel(values[indices[name]]), (x,))
        total = total + task.loss(out, y)
    (wanted,) = torch.autograd.grad(total, values)
    with pool.edit() as draft:
        draft.publish = False
        streams = {name: forever(name, *batch) for name, batch in batches.items()}
        run = Tied(draft, tasks, streams, Settings(10, 1e-3, 10.0, {}, {}))
        loss = run.step(0)
    assert loss == pytest.approx(float(total.detach()) / 3, rel=1e-5)
    # sums of three float32 gradients in another order
    torch.testing.assert_close(run.gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    reference = nn.Parameter(values.detach().clone())
    reference.grad = wanted
    torch.optim.Adam([reference], lr=1e-3).step()
    moved = (wanted.abs() > 1e-4 * wanted.abs().max()).nonzero()[:, 0]  # Adam's first step is a sign: noise elsewhere
    torch.testing.assert_close(draft.values[moved], reference.detach()[moved], rtol=1e-4, atol=1e-6)
    if format == "fp32":
        assert run.seen is draft.values
    else:
        assert torch.equal(run.seen, pool.format.quantize(draft.values))


@pytest.mark.parametrize(("placement", "format"), [("extents", "fp32"), ("pages", "fp32"), ("extents", "bfp4")])
def test_tuning_makes_shared_networks_useful_and_serves_them(placement: str, format: str) -> None:
    pool = pooled.filled(4_000, placement=placement, dtype=format)
    number, models = pool.generation.number, [task.theta() for task in pooled.tasks()]
    with torch.no_grad():  # of the caller's, who has been serving
        done = tune(pool, pooled.tasks(), steps=120, lr=5e-3)
    assert done.committed
    assert pool.generation.number == number + 1
    assert [step for step, _ in done.history] == [0, *range(12, 121, 12)]
    for task, own in zip(pooled.tasks(), models, strict=True):
        assert done.after[task.name].value >= done.before[task.name].value - 0.01
        assert pooled.accuracy(pool, task.name) > 0.85
        assert torch.equal(task.theta(), own)  # the user's model is nobody's business
    assert "committed" in str(done)
    assert done.to_dict()["committed"] is True


def test_batch_norm_statistics_are_trained_and_served_with_the_weights() -> None:
    pool = pooled.filled()
    before = pool.materialise("conv")
    with pool.use("conv") as net:
        old = net
    tune(pool, pooled.tasks(), steps=20, tolerance=1.0)
    after = pool.materialise("conv")
    assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
    assert torch.equal(dict(old.named_buffers())["1.running_mean"], before["1.running_mean"])
    assert torch.equal(pooled.tasks()[2].model.state_dict()["1.running_mean"], before["1.running_mean"])


def poisoned(task: wb.Task, after: int) -> wb.Task:
    """A task whose loss is NaN from some call on."""
    calls = 0

    def loss(z: Any, y: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return F.cross_entropy(z, y) * (math.nan if calls > after else 1.0)

    return wb.Task(task.name, task.model, loss, task.train, task.test)


def bad_gradient(task: wb.Task) -> wb.Task:
    """A task whose loss is finite but has an infinite slope: √0."""
    return wb.Task(
        task.name, task.model, lambda z, y: F.cross_entropy(z, y) + (z * 0).sum().sqrt(), task.train, task.test
    )


@pytest.mark.parametrize("method", ["tied", "joint"])
def test_a_nan_leaves_the_pool_and_its_file_as_they_were(method: Any, tmp_path: Path) -> None:
    pool = pooled.filled()
    pool.save(tmp_path / "pool.safetensors")
    stored, generation = (tmp_path / "pool.safetensors").read_bytes(), pool.generation
    one, two, conv = pooled.tasks()
    for bad in (poisoned(two, after=5), bad_gradient(two)):
        with pytest.raises(DivergedError, match="'two'.*the pool is as it was"):
            tune(pool, [one, bad, conv], steps=20, rounds=2, method=method)
    assert pool.generation is generation
    assert (tmp_path / "pool.safetensors").read_bytes() == stored
    assert pooled.accuracy(pool, "one") > 0.5


def test_a_diverging_learning_rate_is_rolled_back() -> None:
    pool = pooled.filled()
    generation = pool.generation
    try:
        done = tune(pool, pooled.tasks(), steps=30, lr=10.0)
    except DivergedError:
        pass
    else:
        assert not done.committed
        assert set(done.hurt) == {"one", "two", "conv"}
        assert "rolled back" in str(done)
    assert pool.generation is generation


def test_the_best_of_the_checked_candidates_is_committed() -> None:
    pool = pooled.filled()
    done = tune(pool, pooled.tasks(), steps=40, every=5, lr=3e-2, tolerance=1.0)
    gains = [sum(found[name].value - done.before[name].value for name in found) for _, found in done.history[1:]]
    assert sum(done.after[name].value - done.before[name].value for name in done.after) == pytest.approx(max(gains))


def test_who_is_hurt_gets_positions_of_its_own_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that blame 'one' in the first attempt: its most important tensors move to free positions, unchanged."""
    pool = pooled.filled(pooled.CAPACITY + 2_000, reserve=2_000)
    theta, generation = pool["one"].mean().clone(), pool.generation
    seen: list[tuple[int, torch.Tensor]] = []

    def score(task: wb.Task, bound: Any, data: Any) -> Score:
        if task.name == "one":
            own = sum(extent.length for extent in bound.tenant.placement.extents if extent.exclusive)
            seen.append((own, bound.present()))
            return Score("accuracy", 0.5 if len(seen) > 1 and not own else 0.9, 100)
        return Score("accuracy", 0.9, 100)

    monkeypatch.setattr(sys.modules["weightbank.paging.tune"], "score", score)
    done = tune(pool, pooled.tasks(), steps=2, every=1, retries=0)
    assert not done.committed
    assert done.hurt == ("one",)
    assert pool.generation is generation
    seen.clear()
    done = tune(pool, pooled.tasks(), steps=2, every=1, lr=1e-9)
    assert done.committed
    assert done.steps == 4
    assert done.apart["one"] > 0
    own = [extent for extent in pool.generation.tenants["one"].placement.extents if extent.exclusive]
    assert sum(extent.length for extent in own) == done.apart["one"]
    assert (pool["one"].mean() - theta).abs().max() < 1e-7  # rate 1e-9, two steps
    used = torch.zeros(pool.size, dtype=torch.int32)
    for tenant in pool.generation.tenants.values():
        tenant.placement.mark(used)
    assert all(int(used[e.position : e.position + e.length].max()) == 1 for e in own)


@pytest.mark.parametrize("placement", ["extents", "pages"])
def test_networks_without_data_are_held(placement: str) -> None:
    moved = []
    for hold in (100.0, 0.0):
        pool = pooled.filled(3_968, placement=placement)
        one, _, conv = pooled.tasks()
        before = pool["two"].mean().clone()
        tune(pool, [one, conv], steps=60, lr=3e-3, tolerance=1.0, hold=hold)
        importance = pool.generation.tenants["two"].importance.float()  # type: ignore[union-attr]
        moved.append(float((importance * (pool["two"].mean() - before) ** 2).sum()))
    assert moved[0] < 0.2 * moved[1]


def test_an_anchor_brings_a_network_without_data_back_to_its_own_weights() -> None:
    """Sharing has moved it; held at its own weights it comes back, held where it stands it stays."""
    two = pooled.tasks()[1]
    far, scores = [], []
    for anchors in ({"two": two.theta()}, None):
        pool = pooled.filled(3_968)
        tune(pool, [pooled.tasks()[0], pooled.tasks()[2]], steps=60, lr=3e-3, tolerance=1.0, anchors=anchors)
        importance = pool.generation.tenants["two"].importance.float()  # type: ignore[union-attr]
        far.append(float((importance * (pool["two"].mean() - two.theta()) ** 2).sum()))
        scores.append(pooled.accuracy(pool, "two"))
    assert far[0] < 0.5 * far[1]
    assert scores[0] > scores[1]
    with pytest.raises(LayoutError, match="an anchor came for 'one', which is not a tenant without a task"):
        tune(pool, [pooled.tasks()[0]], anchors={"one": two.theta()})
    with pytest.raises(LayoutError, match=r"shape \(3,\)"):
        tune(pool, [pooled.tasks()[0]], anchors={"two": torch.zeros(3)})


def test_a_network_at_its_target_rests() -> None:
    pool = pooled.filled()
    done = tune(pool, pooled.tasks(), steps=40, every=10, targets={"one": 0.2, "two": 0.2, "conv": 0.2}, tolerance=1.0)
    assert done.history[-1][0] == 10  # all of them are beyond it at once: nothing more to do
    assert done.steps == 10
    seen = []

    def loss(z: Any, y: Any) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return F.cross_entropy(z, y)

    one, two, conv = pooled.tasks()
    watched = wb.Task("one", one.model, loss, one.train, one.test)
    tune(pool, [watched, two, conv], steps=20, every=5, targets={"one": 0.2}, tolerance=1.0)
    assert sum(seen) == 0


def test_equal_seeds_repeat_and_nobody_elses_randomness_moves() -> None:
    results = []
    for seed in (1, 1, 2):
        pool = pooled.filled()
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        order = pooled.tasks()[0].train.generator.get_state()  # type: ignore[union-attr]
        tune(pool, pooled.tasks(), steps=5, seed=seed, tolerance=1.0)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(pooled.tasks()[0].train.generator.get_state(), order)  # type: ignore[union-attr]
        results.append(pool)
    assert pooled.same(results[0], results[1])
    assert not pooled.same(results[0], results[2])


@pytest.mark.parametrize(("format", "gain"), [("bfp4", -0.02), ("BlockFloatingPoint(3, block=32)", 0.1)])
def test_a_pool_of_few_bits_is_trained_on_its_grid(format: str, gain: float) -> None:
    """Straight through the rounding is better than rounding afterwards, the more so the fewer the bits."""
    full = pooled.filled(4_032)
    tune(full, pooled.tasks(), steps=80, lr=5e-3, tolerance=1.0)
    afterwards = Pool(4_032, dtype=format)
    with afterwards.edit() as draft:
        draft.values.copy_(full.generation.owner.values())
        draft.tenants.update(full.generation.tenants)
    through = pooled.filled(4_032, dtype=format)
    tune(through, pooled.tasks(), steps=80, lr=5e-3, tolerance=1.0)
    names = [task.name for task in pooled.tasks()]
    mean = [sum(pooled.accuracy(pool, name) for name in names) / 3 for pool in (full, through, afterwards)]
    assert mean[1] > mean[2] + gain
    assert mean[1] > mean[0] - 0.06


def test_the_memory_of_training_does_not_grow_with_the_number_of_networks() -> None:
    """Tensors of pool size that a run holds: counted for one network and for six."""
    task = pooled.tasks()[0]
    held = []
    for count in (1, 6):
        pool = Pool(task.layout.size)
        for number in range(count):
            pool.add(task, name=str(number), importance=pooled.importances()["one"])
        with pool.edit() as draft:
            draft.publish = False
            tasks = {str(number): task for number in range(count)}
            streams = {name: forever(name, *pooled.examples(8)) for name in tasks}
            run = Tied(draft, tasks, streams, Settings(4, 1e-3, 10.0, {}, {}))
            run.step(0)
            tensors = [draft.values, run.gradient, run.seen, *run.adam.state_dict()["state"][0].values()]
            for bound in run.bounds.values():
                tensors += [*bound.net.parameters(), *[p.grad for p in bound.net.parameters() if p.grad is not None]]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
            held.append(sum(storages.values()))
    assert held[0] == held[1] <= 4 * 4 * task.layout.size + 64


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"steps": 0}, DataError, "steps=0"),
        ({"steps": 1e3}, DataError, "steps=1000.0.*whole numbers"),
        ({"lr": 0.0}, DataError, "lr=0.0"),
        ({"lr": math.inf}, DataError, "lr=inf"),
        ({"hold": math.nan}, DataError, "hold=nan"),
        ({"tolerance": math.nan}, DataError, "a tolerance of nan for 'one'"),
        ({"tolerance": {"nobody": 0.1}}, DataError, "a tolerance of 0.1 for 'nobody'"),
        ({"targets": {"nobody": 0.5}}, LayoutError, "'nobody' is no tenant with a task here; tenants: one, two, conv"),
        ({"method": "other"}, DataError, "wanted tied, joint or sequential"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_happens(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    pool = pooled.filled()
    generation = pool.generation
    with pytest.raises(error, match=said):
        tune.__wrapped__(pool, pooled.tasks(), **options)  # type: ignore[attr-defined]
    assert pool.generation is generation


def test_a_model_that_is_not_the_tenants_is_refused() -> None:
    one, two, _ = pooled.tasks()
    other = wb.Task("one", two.model, two.loss, two.train, two.test)
    with pytest.raises(LayoutError, match="the model of 'one' has other weights"):
        tune(pooled.filled(), [other])
    with pytest.raises(DataError, match="2 tasks with 1 different names"):
        tune(pooled.filled(), [one, one])


def test_a_pool_without_importances_is_for_serving() -> None:
    pool = pooled.filled()
    with pool.edit() as draft:
        for name, tenant in draft.tenants.items():
            draft.tenants[name] = replace(tenant, importance=None)
    with pytest.raises(LayoutError, match="importance=True"):
        tune(pool, [pooled.tasks()[0]])
    assert pooled.accuracy(pool, "one") > 0.5

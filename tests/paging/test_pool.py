import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pooled
import weightbank as wb
from weightbank.errors import CapacityError, CurvatureError, LayoutError, NonFiniteError, StoreError
from weightbank.formats import format_of
from weightbank.layout import within
from weightbank.paging import Pool, tune, vectors
from weightbank.paging.exclusive import chosen_exclusive
from weightbank.paging.importance import importance_of, normalised


def frozen(pool: Pool) -> dict[str, torch.Tensor]:
    return {name: pool[name].mean().clone() for name in pool}


@pytest.mark.parametrize("placement", ["extents", "pages", "published"])
def test_shared_positions_stand_at_the_mean_weighted_by_importance(placement: str) -> None:
    pool = pooled.filled(placement=placement)
    precision, moment = torch.zeros(2, pool.size, dtype=torch.float64)
    places = {}
    for task in pooled.tasks():
        place = pool.generation.tenants[task.name].placement.gather(torch.arange(pool.size))
        weight = normalised(pooled.importances()[task.name])[0].bfloat16().double()
        precision[place] += weight
        moment[place] += weight * task.theta().double()
        places[task.name] = place
    for name, place in places.items():
        torch.testing.assert_close(pool[name].mean(), (moment / precision)[place].float(), rtol=1e-5, atol=1e-6)
    assert pool.report().occupancy[2] > 0  # two thirds of these were really shared


def test_the_scale_of_an_importance_does_not_matter_so_a_sure_network_keeps_its_share() -> None:
    one, two, _ = pooled.tasks()
    pools = []
    for scale in (1.0, 2.0**-20):
        pool = Pool(2_000)
        pool.add(one, importance=pooled.importances()["one"])
        pool.add(two, importance=pooled.importances()["two"] * scale)
        pools.append(pool)
    assert torch.equal(pools[0].generation.owner.raw, pools[1].generation.owner.raw)
    pool = Pool(2_000)
    pool.add(one, importance=pooled.importances()["one"])
    pool.add(two, importance=pooled.importances()["two"], share=1e6)
    theta = two.theta()
    assert (pool["two"].mean() - theta).norm() < 0.1 * (pools[0]["two"].mean() - theta).norm()


def test_importances_that_are_all_zero_count_equally() -> None:
    one, two, _ = pooled.tasks()
    pool = Pool(2_000)
    for task in (one, two):
        pool.add(task, importance=torch.zeros(task.layout.size))
    assert pool["two"].mean().isfinite().all()
    relative, scale = normalised(torch.zeros(5))
    torch.testing.assert_close(relative, torch.ones(5))
    assert scale == 0


def test_removing_a_network_changes_nobody_else_and_frees_its_positions() -> None:
    pool = pooled.filled()
    before = frozen(pool)
    pool.remove("two")
    assert list(pool) == ["one", "conv"]
    for name in pool:
        assert torch.equal(pool[name].mean(), before[name])
    used = torch.zeros(pool.size, dtype=torch.int32)
    for tenant in pool.generation.tenants.values():
        tenant.placement.mark(used)
    assert not pool.generation.owner.values()[used == 0].any()
    pool.remove("one")
    pool.remove("conv")
    assert not pool.generation.owner.values().any()
    with pytest.raises(LayoutError, match="no tenant 'one' here; there are: none yet"):
        pool.remove("one")


@pytest.mark.parametrize("placement", ["extents", "pages", "published"])
def test_a_network_that_does_not_fit_changes_nothing(placement: str) -> None:
    pool = Pool(2_000)
    pool.add(pooled.tasks()[0], importance=pooled.importances()["one"])
    before = pool.generation
    with pytest.raises(CapacityError, match=r"3,842 weights, the pool 2,000 positions"):
        pool.add(pooled.tasks()[2], importance=pooled.importances()["conv"], placement=placement)  # type: ignore[arg-type]
    assert pool.generation is before


def test_names_are_given_once() -> None:
    pool = Pool(4_000)
    task = pooled.tasks()[0]
    pool.add(task, importance=pooled.importances()["one"])
    with pytest.raises(LayoutError, match="'one' names a tenant already"):
        pool.add(task)
    pool.add(task, name="copy", importance=pooled.importances()["one"])
    assert list(pool) == ["one", "copy"]
    assert "copy" in pool
    assert len(pool) == 2


def broken(task: wb.Task, value: float) -> wb.Task:
    model = copy.deepcopy(task.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = value
    return wb.Task("broken", model, task.loss, task.train, task.test)


def test_bad_numbers_never_enter() -> None:
    pool = pooled.filled()
    before = pool.generation
    one = pooled.tasks()[0]
    size = one.layout.size
    with pytest.raises(NonFiniteError, match="1 weights are NaN"):
        pool.add(broken(one, float("nan")), importance=torch.ones(size))
    with pytest.raises(NonFiniteError, match="importances are NaN"):
        pool.add(one, name="x", importance=torch.full((size,), float("nan")))
    with pytest.raises(CurvatureError, match="must not be negative"):
        pool.add(one, name="x", importance=-torch.ones(size))
    with pytest.raises(LayoutError, match="1,?810"):
        pool.add(one, name="x", importance=torch.ones(3))
    for share in (0.0, float("inf"), float("nan")):
        with pytest.raises(LayoutError, match=f"share={share}"):
            pool.add(one, name="x", importance=torch.ones(size), share=share)
    with pytest.raises(LayoutError, match="meta device and has no weights"):
        pool.add(wb.Task("meta", copy.deepcopy(one.model).to("meta"), one.loss, one.train, one.test))
    for options in ({"name": 3}, {"name": "x", "notes": 3}):
        with pytest.raises(LayoutError, match="wanted a text, and a mapping"):
            pool.add.__wrapped__(pool, one, **options)  # type: ignore[attr-defined]
    with pytest.raises(LayoutError, match="importance is a list; wanted a tensor of 1,810"):
        importance_of.__wrapped__(one, [1.0] * size)  # type: ignore[attr-defined]
    with pytest.raises(CapacityError, match=r"reserve=1.5 of 100 positions"):
        Pool.__init__.__wrapped__(pool, 100, reserve=1.5)  # type: ignore[attr-defined]
    assert pool.generation is before


def test_an_importance_can_be_any_curvature_and_by_default_is_the_fisher_information() -> None:
    one = pooled.tasks()[0]
    given, default, named = Pool(2_000), Pool(2_000), Pool(2_000)
    given.add(one, importance=wb.curvature.fisher(one, images=2_000))
    default.add(one)
    named.add(one, importance=wb.curvature.magnitude)
    kept = [pool.generation.tenants["one"].importance for pool in (given, default, named)]
    assert torch.equal(kept[0], kept[1])  # type: ignore[arg-type]
    assert not torch.equal(kept[0], kept[2])  # type: ignore[arg-type]

    odd = wb.Task("odd", one.model, lambda z, y: z.abs().mean(), one.train, one.test)
    with pytest.raises(CurvatureError, match="pass importance=, a vector of 1,810"):
        Pool(2_000).add(odd)


def test_exclusive_tensors_share_with_nobody_and_keep_their_weights() -> None:
    tasks = pooled.tasks()
    pool = Pool(5_500, reserve=500)
    for task in tasks:
        pool.add(task, importance=pooled.importances()[task.name], exclusive=vectors)
    used = torch.zeros(pool.size, dtype=torch.int32)
    for tenant in pool.generation.tenants.values():
        tenant.placement.mark(used)
    for task in tasks:
        placement = pool.generation.tenants[task.name].placement
        law = pool[task.name]
        own = sum(extent.length for extent in placement.extents if extent.exclusive)
        assert own == sum(entry.size for entry in law.layout.entries if len(entry.shape) == 1) > 0
        for position, length in placement.runs(exclusive_only=True):
            assert int(used[position : position + length].max()) == 1
        for entry in law.layout.entries:
            here = slice(entry.offset, entry.offset + entry.size)
            same = torch.equal(law.mean()[here], task.theta()[here])
            assert same or len(entry.shape) > 1
    shared = [tenant.placement for tenant in pool.generation.tenants.values()]
    assert all(
        position + length <= 5_000
        for p in shared
        for position, length in set(p.runs()) - set(p.runs(exclusive_only=True))
    )


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 1.0])
def test_a_fraction_keeps_the_small_tensors_with_the_most_importance_apart(fraction: float) -> None:
    one = pooled.tasks()[0]
    importance = torch.zeros(one.layout.size)
    for name, much in {"1.weight": 5.0, "1.bias": 2.0, "3.weight": 3.0, "3.bias": 1.0}.items():
        importance[one.layout.slice(name)] = much
    sizes = {name: len(one.theta()[one.layout.slice(name)]) for name in one.layout.names}
    room, wanted = int(fraction * one.layout.size), []
    for name in ("1.weight", "3.weight", "1.bias", "3.bias"):
        if sizes[name] <= room:
            wanted.append(name)
            room -= sizes[name]
    pool = Pool(4_000, reserve=1_900)
    pool.add(one, importance=importance, exclusive=fraction)
    apart = [extent for extent in pool.generation.tenants["one"].placement.extents if extent.exclusive]
    assert {(e.start, e.length) for e in apart} == {(one.layout.slice(n).start, sizes[n]) for n in wanted}
    assert bool(wanted) == (fraction > 0)
    for odd in (1.5, -0.1, float("nan"), "1.bias", True):
        with pytest.raises(LayoutError, match="exclusive=.*a fraction of the weights"):
            chosen_exclusive.__wrapped__(one.model, one.layout, importance, odd)  # type: ignore[attr-defined]


def test_pages_leave_exclusive_tensors_alone() -> None:
    pool = Pool(5_500, reserve=500)
    for task in pooled.tasks():
        pool.add(task, importance=pooled.importances()[task.name], placement="pages", page_size=64, exclusive=vectors)
    one = pooled.tasks()[0]
    law = pool["one"]
    assert torch.equal(law.mean()[law.layout.slice("1.bias")], one.theta()[law.layout.slice("1.bias")])
    assert pool.report().tenants[0].pages == -(-(64 * 24 + 240) // 64)
    with pytest.raises(CapacityError, match=r"free positions in one run for the exclusive '1.weight'"):
        pool.add(one, name="more", importance=pooled.importances()["one"], exclusive=within("1.weight"))


@pytest.mark.parametrize("format", ["bf16", "bfp8", "bfp4"])
@pytest.mark.parametrize("placement", ["extents", "pages"])
def test_a_pool_of_few_bits_holds_the_rounded_weights(format: str, placement: str) -> None:
    full, low = (pooled.filled(dtype=dtype, placement=placement) for dtype in ("fp32", format))
    bits = format_of(format).bits_per_weight
    assert low.generation.owner.nbytes == pytest.approx(low.size * bits / 8, abs=80)
    assert not low.generation.zero_copy("one")
    assert torch.equal(low.generation.owner.values(), low.format.quantize(low.generation.owner.values()))
    with low.use("one") as net:
        assert torch.equal(low["one"].layout.ravel(net), low["one"].mean())
    assert full.size == low.size


def test_a_bf16_network_runs_from_a_bf16_pool_without_a_copy() -> None:
    task = pooled.tasks()[0]
    model = copy.deepcopy(task.model).bfloat16()
    x, y = pooled.examples(64)
    half = wb.Task("half", model, F.cross_entropy, (x.bfloat16(), y), (x.bfloat16(), y))
    pool = Pool("4 kB", dtype="bf16")
    pool.add(half, importance=torch.ones(task.layout.size))
    assert pool.generation.zero_copy("half")
    with pool.use("half") as net:
        assert torch.equal(net(x.bfloat16()), half.predict(half.theta(), x.bfloat16()))


def encoder(width: int, layers: int, seed: int) -> nn.Module:
    """A small transformer encoder that reads images row by row, with tied dropout and norms."""
    torch.manual_seed(seed)

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, width)
            layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            self.place = nn.Parameter(torch.randn(8, width) * 0.1)
            self.head = nn.Linear(width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layers(self.embed(x.flatten(1, -2)) + self.place).mean(1))

    return Reader()


def test_two_transformer_encoders_share_a_pool_through_the_same_lines() -> None:
    data = wb.data.digits()
    tasks = [
        wb.Task(f"encoder {seed}", encoder(width, 2, seed), F.cross_entropy, data.train, data.test, batch_size=64)
        for seed, width in enumerate([16, 20])
    ]
    pool = Pool(max(task.layout.size for task in tasks) + 1_000)
    assert sum(task.layout.size for task in tasks) > 1.3 * pool.size
    for task in tasks:
        pool.add(task, importance=wb.curvature.magnitude)
    done = tune(pool, tasks, steps=60, lr=5e-3)
    assert done.committed
    assert all(done.after[task.name].value > done.before[task.name].value + 0.2 for task in tasks)
    for task in tasks:
        assert pool.generation.zero_copy(task.name)
        with pool.use(task.name) as net, torch.no_grad():
            assert net(data.test[0]).shape == (500, 10)


def test_an_edit_that_fails_is_as_if_it_never_began() -> None:
    pool = pooled.filled()
    before = pool.generation
    with pytest.raises(RuntimeError, match="stop"), pool.edit() as draft:  # noqa: PT012
        draft.values.zero_()
        draft.dismiss("one")
        raise RuntimeError("stop")
    assert pool.generation is before
    assert pool["one"].mean().any()


def test_several_edits_appear_at_once() -> None:
    pool = pooled.filled()
    with pool.edit() as draft:
        draft.dismiss("one")
        draft.dismiss("two")
        assert list(pool) == ["one", "two", "conv"]
    assert list(pool) == ["conv"]


def test_a_copy_begins_the_same_and_goes_its_own_way(tmp_path: Path) -> None:
    pool = pooled.filled(reserve=100)
    pool.save(tmp_path / "pool.safetensors")
    other = pool.copy()
    assert pooled.same(pool, other)
    assert other.reserve == 100
    assert other.generation.owner is pool.generation.owner
    other.remove("one")
    assert list(pool) == ["one", "two", "conv"]
    assert list(other) == ["two", "conv"]
    with pytest.raises(StoreError, match="not opened from a file"):
        other.refresh()
    pool.remove("two")
    assert list(other) == ["two", "conv"]


def test_the_report_counts_bytes_and_shares() -> None:
    pool = pooled.filled()
    report = pool.report()
    assert report.weights == sum(task.layout.size for task in pooled.tasks())
    assert report.positions == sum(report.occupancy) == pooled.CAPACITY
    assert report.used == pooled.CAPACITY - report.occupancy[0]
    assert sum(number * count for number, count in enumerate(report.occupancy)) == report.weights
    buffers = 2 * (8 + 16) * 4 + 2 * 8
    assert report.bytes_rest == buffers
    assert pool.nbytes == 4 * pooled.CAPACITY + buffers
    assert report.bytes_apart == 4 * report.weights + buffers
    assert report.to_dict()["packing"] == report.packing == report.weights / pooled.CAPACITY
    assert "3 networks" in str(report)
    assert repr(pool) == "Pool(5,200 positions of Native('float32'), 3 tenants)"

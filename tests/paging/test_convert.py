import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pooled
import weightbank as wb
from weightbank.errors import DataError, DivergedError, FormatError, LayoutError
from weightbank.formats import format_of
from weightbank.formats.spacing import step_sizes
from weightbank.paging import Pool, convert, tune
from weightbank.paging.asked import judged_of
from weightbank.paging.convert import Taught
from weightbank.paging.tied import Settings
from weightbank.streams import Stream


def tasks_of(pool: Pool) -> list[wb.Task]:
    return [task for task in pooled.tasks() if task.name in pool]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a pool whose three networks work."""
    pool = pooled.filled(4_000)
    tune(pool, pooled.tasks(), steps=120, lr=5e-3)
    path = tmp_path_factory.mktemp("pool") / "tuned.safetensors"
    pool.save(path)
    return path


@pytest.fixture
def pool(tuned: Path) -> Pool:
    return Pool.open(tuned, {task.name: task.model for task in pooled.tasks()})


def logits(pool: Pool, task: wb.Task, values: Tensor, x: Tensor) -> Tensor:
    """By way of an index into one vector, in evaluation mode."""
    index = pool.generation.tenants[task.name].placement.gather(torch.arange(pool.size))
    weights = {**task.layout.unravel(values[index]), **pool.generation.tenants[task.name].rest}
    return torch.func.functional_call(copy.deepcopy(task.model).eval(), weights, (x,))


def divergence(before: Tensor, after: Tensor) -> Tensor:
    p, q = before.double().softmax(1), after.double().softmax(1)
    return (p * (p.log() - q.log())).sum(1)


@pytest.mark.parametrize("format", ["bfp8", "bfp4", "bf16", "mxfp4_e2m1"])
def test_without_tasks_each_position_takes_the_nearest_number(pool: Pool, format: str) -> None:
    before, generation = pool.generation.owner.values().clone(), pool.generation
    done = convert(pool, format)
    assert done.committed
    assert pool.format == format_of(format)
    assert pool.generation.number == generation.number + 1
    assert torch.equal(pool.generation.owner.values(), format_of(format).quantize(before))
    assert (done.bytes_before, done.bytes_after) == (generation.owner.nbytes, pool.generation.owner.nbytes)
    for name, tenant in pool.generation.tenants.items():
        assert tenant.placement is generation.tenants[name].placement
        assert tenant.importance is not None
        index = tenant.placement.gather(torch.arange(pool.size))
        change = (pool.generation.owner.values() - before)[index].double()
        rise = 0.5 * tenant.scale * float((tenant.importance.double() * change**2).sum())
        assert done.predicted[name] == pytest.approx(rise, rel=1e-6)
    assert "one: loss up by about" in str(done)


@pytest.mark.parametrize("placement", ["extents", "pages"])
def test_gradients_are_those_of_the_divergence_straight_through_the_rounding(placement: str) -> None:
    """Against autograd through an index into one vector."""
    pool = pooled.filled(placement=placement)
    tasks = {task.name: task for task in pooled.tasks()}
    x, y = pooled.examples(20)
    exact = pool.generation.owner.values().clone()
    rounded = format_of("bfp4").quantize(exact)
    seen = rounded.clone().requires_grad_()
    total = sum(divergence(logits(pool, task, exact, x), logits(pool, task, seen, x)).mean() for task in tasks.values())
    (wanted,) = torch.autograd.grad(torch.as_tensor(total), seen)
    with pool.edit() as draft:
        draft.publish, draft.format = False, format_of("bfp4")
        stream = Stream("any", [(x, y)], None, torch.device("cpu"))
        judged = {name: (stream, [(x, y)]) for name in tasks}
        run = Taught(draft, tasks, judged, Settings(10, 0.2, 10.0, {}, {}), exact, rounded)
        moved = run.moved()
        loss = run.step(0)
    for name, task in tasks.items():
        mean = divergence(logits(pool, task, exact, x), logits(pool, task, rounded, x)).mean()
        assert moved[name] == pytest.approx(float(mean), rel=1e-4)
    assert loss == pytest.approx(float(torch.as_tensor(total).detach()) / 3, rel=1e-4)
    torch.testing.assert_close(run.gradient, wanted.float(), rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    # Adam's first step is the rate in the direction of the gradient; here in units of the format's step
    clear = wanted.abs() > 1e-3 * wanted.abs().max()
    move = -0.2 * step_sizes(exact, rounded, 64) * wanted.sign()
    torch.testing.assert_close((draft.values - exact)[clear], move[clear], rtol=1e-3, atol=1e-6)
    assert torch.equal(run.seen, format_of("bfp4").quantize(draft.values))


def test_four_bits_by_example_keep_what_rounding_to_nearest_loses(pool: Pool) -> None:
    before = pool.generation.owner.values().clone()
    rest = {name: pool.materialise(name) for name in pool}
    done = convert(pool, "bfp4", pooled.tasks())
    values = pool.generation.owner.values()
    assert done.committed
    assert torch.equal(format_of("bfp4").quantize(values), values)
    judged = judged_of({task.name: task for task in pooled.tasks()}, 0, None)
    for task in pooled.tasks():
        nearest, after = done.moved[task.name]
        assert after < 0.5 * nearest
        x, y = (torch.cat(parts) for parts in zip(*judged[task.name][1], strict=True))
        with torch.no_grad():
            then, now = logits(pool, task, before, x), logits(pool, task, values, x)
        assert after == pytest.approx(float(divergence(then, now).mean()), rel=1e-3, abs=1e-7)
        assert done.after[task.name].value == pytest.approx(float((now.argmax(1) == y).float().mean()))
        assert done.before[task.name].value == pytest.approx(float((then.argmax(1) == y).float().mean()))
        for key, value in pool.materialise(task.name).items():  # BatchNorm's statistics are nobody's to change
            if "running" in key or "num_batches" in key:
                assert torch.equal(value, rest[task.name][key])
    assert "rounded to nearest" in str(done)
    assert done.to_dict()["moved"]["one"]["after"] == done.moved["one"][1]


def test_what_readers_hold_and_what_is_saved(pool: Pool, tmp_path: Path) -> None:
    x, _ = pooled.examples(50)
    with torch.no_grad(), pool.use("one") as net:
        before = net(x)
        convert(pool, "bfp8", pooled.tasks(), steps=4)
        assert torch.equal(net(x), before)
        with pool.use("one") as other:
            assert not torch.equal(other(x), before)
    pool.save(tmp_path / "small.safetensors")
    again = Pool.open(tmp_path / "small.safetensors")
    assert again.format == format_of("bfp8")
    assert pooled.same(pool, again)


def test_a_network_that_loses_too_much_stops_it(pool: Pool) -> None:
    before = pool.generation
    done = convert(pool, "BlockFloatingPoint(2, block=64)", pooled.tasks(), steps=0)
    assert not done.committed
    assert pool.generation is before
    assert set(done.hurt) <= {"one", "two", "conv"}
    assert done.hurt
    assert "not committed" in str(done)
    assert done.after == done.nearest
    assert convert(pool, "BlockFloatingPoint(2, block=64)", pooled.tasks(), steps=0, tolerance=math.inf).committed


def test_numbers_that_the_format_has_stay_without_a_step(pool: Pool) -> None:
    convert(pool, "bf16")
    before = pool.generation.owner.values().clone()
    done = convert(pool, "fp32", pooled.tasks())
    assert (done.committed, done.steps) == (True, 0)
    assert torch.equal(pool.generation.owner.values(), before)
    assert set(done.moved.values()) == {(0.0, 0.0)}
    assert pool.generation.zero_copy("one")


def test_unused_positions_stay_zero_and_networks_without_a_task_are_held() -> None:
    pool = Pool(20_000)
    for task in pooled.tasks():
        pool.add(task, importance=pooled.importances()[task.name], exclusive=wb.everything)
    before = pool.generation.owner.values().clone()
    done = convert(pool, "bfp4", pooled.tasks()[:1], steps=20)
    assert done.committed
    values, used = pool.generation.owner.values(), pool.generation.tenants
    places = torch.zeros(pool.size, dtype=torch.int32)
    for tenant in used.values():
        tenant.placement.mark(places)
    assert not bool(values[places == 0].any())
    nearest = format_of("bfp4").quantize(before)
    index = {name: used[name].placement.gather(torch.arange(pool.size)) for name in used}
    assert torch.equal(values[index["two"]], nearest[index["two"]])
    assert torch.equal(values[index["conv"]], nearest[index["conv"]])
    assert not torch.equal(values[index["one"]], nearest[index["one"]])
    assert set(done.moved) == {"one"}
    assert set(done.predicted) == {"one", "two", "conv"}


def squared(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


def margin(output: Tensor, target: Tensor) -> Tensor:
    """A loss of unknown curvature."""
    return F.smooth_l1_loss(output, target)


def test_regressions_keep_their_outputs_and_unknown_losses_their_value() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2]], 1)
    for loss in (squared, margin):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, 2))
        task = wb.Task("curve", model, loss, (x, y), (x, y))
        pool = Pool(512)
        pool.add(task, importance=torch.ones(task.layout.size))
        before = pool.generation.owner.values().clone()
        done = convert(pool, "bfp4", task, steps=100, tolerance=math.inf)
        (held,) = judged_of({"curve": task}, 0, None)["curve"][1]
        with torch.no_grad():
            then, now = (logits(pool, task, values, held[0]) for values in (before, pool.generation.owner.values()))
        nearest, after = done.moved["curve"]
        if loss is squared:  # dropout would make this impossible
            assert after == pytest.approx(float((now - then).square().mean()), rel=1e-4)
            assert after < 0.5 * nearest
        else:
            assert after == pytest.approx(float(margin(now, held[1]) - margin(then, held[1])), rel=1e-3, abs=1e-6)
            assert after < nearest


def test_equal_seeds_repeat_and_nobody_elses_randomness_moves(tuned: Path) -> None:
    found = []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        pool = Pool.open(tuned)
        assert convert(pool, "bfp4", pooled.tasks(), steps=40, seed=seed).moved["conv"][1] > 0
        found.append(pool.generation.owner.raw)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("format", "options", "error", "message"),
    [
        ("bfp3", {}, FormatError, "not a number format"),
        ("bfp8", {"steps": -1}, DataError, "steps=-1"),
        ("bfp8", {"steps": 2.5}, DataError, "steps=2.5"),
        ("bfp8", {"hold": math.nan}, DataError, "hold=nan"),
        ("bfp8", {"tolerance": {"nobody": 0.1}}, DataError, "'nobody'"),
        ("bfp8", {"shares": {"nobody": 0.1}}, LayoutError, "'nobody' is no tenant"),
        ("bfp8", {"validation": {"nobody": []}}, LayoutError, "'nobody' is no tenant"),
    ],
)
def test_arguments_out_of_range_leave_the_pool_alone(
    pool: Pool, format: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = pool.generation
    with pytest.raises(error, match=message):
        convert(pool, format, pooled.tasks(), **options)
    assert pool.generation is before


def test_bad_data_and_strange_models_leave_the_pool_alone(pool: Pool) -> None:
    before, task = pool.generation, pooled.tasks()[0]
    x, y = pooled.examples(64)
    broken = wb.Task("one", task.model, F.cross_entropy, (x * math.nan, y), (x, y))
    good = {"one": (x, y)}
    with pytest.raises(DivergedError, match="'one': loss is nan"):
        convert(pool, "bfp8", broken, validation=good)
    stranger = wb.Task("one", pooled.tasks()[1].model, F.cross_entropy, (x, y), (x, y))
    with pytest.raises(LayoutError, match="other weights"):
        convert(pool, "bfp8", stranger)
    with pytest.raises(LayoutError, match="'else' is no tenant"):
        convert(pool, "bfp8", {"else": task})
    assert pool.generation is before

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import weightbank as wb
from weightbank.data import digits
from weightbank.errors import DataError, DivergedError, FormatError, LayoutError
from weightbank.lowprecision import pack_by_example
from weightbank.lowprecision.by_example import _Run, rounded
from weightbank.streams import split
from weightbank.zoo import mlp

ROWS_OF_2 = "BlockFloatingPoint(2, block=ByDimensions())"


@pytest.fixture(scope="module")
def task() -> wb.Task:
    """A trained network with BatchNorm and dropout."""
    data = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = (nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.2))
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(48, 10))
        task = wb.Task("digits", model, F.cross_entropy, data.train, data.test, batch_size=32)
        for _ in wb.epochs(task, torch.optim.Adam(model.parameters(), lr=5e-3), count=6):
            pass
    return task


def kl(before: Tensor, after: Tensor) -> float:
    p, q = before.double().softmax(1), after.double().softmax(1)
    return float((p * (p.log() - q.log())).sum(1).mean())


def test_two_bits_by_example_keep_what_rounding_to_nearest_loses(task: wb.Task, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in task.model.state_dict().items()}
    found = pack_by_example(task, ROWS_OF_2, tmp_path / "two.safetensors")
    nearest = wb.pack(task.theta(), task.layout, ROWS_OF_2)
    assert found.packed.nbytes == nearest.nbytes
    assert found.after < 0.25 * found.nearest
    _, held = split(task, seed=0)
    x = torch.cat([x for x, _ in held])
    exact = task.predict(task.theta(), x)
    assert found.nearest == pytest.approx(kl(exact, task.predict(nearest.mean(), x)), rel=1e-4)
    assert found.after == pytest.approx(kl(exact, task.predict(found.packed.mean(), x)), rel=1e-4)
    again = wb.PackedWeights.open(tmp_path / "two.safetensors")
    assert torch.equal(again.mean(), found.packed.mean())
    formats = {name: part.format for name, part in nearest.parts.items()}
    assert torch.equal(rounded(again.mean(), task.layout, formats), again.mean())
    scores = [float(wb.evaluate(task, law, 1, batch_norm="keep").accuracy.mean) for law in (nearest, again)]
    assert scores[1] > scores[0]
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, state[name])
    assert task.model.training
    assert "rounded to nearest" in str(found)
    assert found.to_dict()["after"] == found.after


def test_the_gradient_is_that_of_the_divergence_at_the_rounded_weights(task: wb.Task) -> None:
    theta = task.theta()
    formats = {name: wb.BlockFloatingPoint(3, wb.ByDimensions()) for name in task.layout.names}
    run = _Run(task, theta, formats, None, 10)
    x, y = digits().test[0][:40], digits().test[1][:40]
    seen = run.seen.clone().requires_grad_()
    p, q = task.predict(theta, x).softmax(1), task.predict(seen, x).softmax(1)
    (wanted,) = torch.autograd.grad((p * (p.log() - q.log())).sum(1).mean(), seen)
    run.step(x, y, 0)
    assert run.memory.grad is not None
    torch.testing.assert_close(run.memory.grad, wanted, rtol=1e-3, atol=1e-6 * float(wanted.abs().max()))
    clear = wanted.abs() > 1e-3 * wanted.abs().max()
    move = -0.2 * run.spread * wanted.sign()  # Adam's first step is the rate, in steps of the format
    torch.testing.assert_close((run.memory.detach() - theta)[clear], move[clear], rtol=1e-3, atol=1e-6)


def test_every_tensor_keeps_its_own_format_and_an_average_its_own_statistics(task: wb.Task) -> None:
    formats = dict.fromkeys(task.layout.names, "bf16") | {"1.weight": "bfp4", "5.weight": "fp32"}
    theta = task.theta() * 1.01
    buffers = {"2.running_mean": torch.zeros(48), "2.running_var": torch.full((48,), 2.0)}
    found = pack_by_example(task, formats, theta=theta, buffers=buffers, steps=40)
    _, held = split(task, seed=0)
    x = torch.cat([x for x, _ in held])
    far = kl(task.predict(theta, x, buffers=buffers), task.predict(found.packed.mean(), x, buffers=buffers))
    assert found.after == pytest.approx(far, rel=1e-3)
    assert found.after <= found.nearest
    assert repr(found.packed.parts["1.weight"].format) == "BlockFloatingPoint(4, block=32)"


def test_nothing_to_round_takes_no_step_and_no_steps_round_to_nearest(task: wb.Task) -> None:
    plain = pack_by_example(task, "fp32")
    assert (plain.steps, plain.nearest, plain.after) == (0, 0.0, 0.0)
    blind = pack_by_example(task, "bfp4", steps=0)
    assert torch.equal(blind.packed.mean(), wb.pack(task.theta(), task.layout, "bfp4").mean())
    assert blind.after == blind.nearest > 0


def test_equal_seeds_repeat_and_nobody_elses_randomness_moves(task: wb.Task) -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        one, same, other = (pack_by_example(task, ROWS_OF_2, steps=60, seed=seed).packed.mean() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_some_weights_only_and_a_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = mlp(5, 40, 3)
    task = wb.Task("line", model, F.mse_loss, (x, torch.zeros(300, 3)), (x, x[:, :3]), where=wb.within("1"))
    found = pack_by_example(task, "BlockFloatingPoint(3, block=64)")
    assert found.packed.layout.size == task.layout.size < sum(p.numel() for p in model.parameters())
    assert found.after < 0.7 * found.nearest


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("format", "options", "error", "message"),
    [
        ("bfp3", {}, FormatError, "not a number format"),
        ({"1.weight": "bfp8"}, {}, LayoutError, "one for each parameter"),
        ("bfp8", {"steps": -1}, DataError, "steps=-1"),
        ("bfp8", {"theta": torch.zeros(3)}, LayoutError, "3"),
        ("bfp8", {"theta": math.nan}, wb.WeightbankError, "nan"),
    ],
)
def test_arguments_out_of_range_are_refused(
    task: wb.Task, format: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if options.get("theta") is math.nan:
        options = {"theta": torch.full((task.layout.size,), math.nan)}
    with pytest.raises(error, match=message):
        pack_by_example(task, format, **options)


def test_bad_data_are_named(task: wb.Task, tmp_path: Path) -> None:
    x, y = digits().train
    broken = wb.Task("digits", task.model, F.cross_entropy, (x * math.nan, y), (x, y), batch_size=32)
    with pytest.raises(DivergedError, match="digits: predictions or gradients are NaN"):
        pack_by_example(broken, "bfp4", tmp_path / "file.safetensors", validation=(x, y))
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="at least two"):
        pack_by_example(wb.Task("one", task.model, F.cross_entropy, (x[:1], y[:1]), (x, y)), "bfp4")

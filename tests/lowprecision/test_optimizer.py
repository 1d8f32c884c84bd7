import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightbank.errors import NonFiniteError, PrecisionError
from weightbank.formats import BlockFloatingPoint, ByDimensions, FixedPoint, Packed, key
from weightbank.lowprecision import Precision, exempt, override
from weightbank.store.state import load_state, save_state
from weightbank.task import Task
from weightbank.training import epochs

RATE, MOMENTUM, DECAY = 0.125, 0.5, 2.0**-6  # powers of two: every product is exact, fused or not
Quantize = Callable[[str, np.ndarray], np.ndarray]


def block8(what: str, x: np.ndarray) -> np.ndarray:
    """8 bits to nearest: one exponent per row of weights, gradients, momentum; one for vectors, activations, errors."""
    rows = x.reshape(len(x), -1) if x.ndim > 1 and not what.startswith(("activations", "errors")) else x.reshape(1, -1)
    out = np.empty_like(rows)
    for row, target in zip(rows, out, strict=True):
        up, above = np.frexp(row.max())
        down, below = np.frexp(-row.min())
        exponent = max(above - 1 if up > 0 else -200, below - 1 - (down == 0.5) if down > 0 else -200)
        step = np.float32(2.0 ** (exponent - 6))
        target[:] = np.clip(np.rint(row / step), -128, 127) * step if exponent > -200 else 0
    return out.reshape(x.shape)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and loss gradients of few bits, so that every sum of products is exact in any order."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(-8, 9, (4, 6), generator=generator) / 8
    return x, torch.randint(-8, 9, (4, 3), generator=generator) / 16


def gradients(w: dict[str, np.ndarray], step: int, Q: Quantize) -> dict[str, np.ndarray]:
    """Forward and backward of the network in numpy, for the loss sum(output * t)."""
    x, t = (tensor.numpy() for tensor in batch(step))
    z = x @ w["0.weight"].T + w["0.bias"]
    a = Q("activations of '1', call 0", np.maximum(z, 0))
    e = Q("errors of '1', call 0", t @ w["2.weight"]) * (z > 0)
    return {"0.weight": e.T @ x, "0.bias": e.sum(0), "2.weight": t.T @ a, "2.bias": t.sum(0)}


def algorithm2(w: dict[str, np.ndarray], steps: int, quantizer: Callable[[int], Quantize]) -> dict[str, np.ndarray]:
    """SWALP, Algorithm 2, with Q_M after the step instead of before the next one."""
    w = {name: quantizer(0)(f"weights of '{name}'", value) for name, value in w.items()}
    v: dict[str, np.ndarray] = {}
    for t in range(1, steps + 1):
        found, Q = gradients(w, t, quantizer(t - 1)), quantizer(t)
        for name in w:
            g = Q(f"gradients of '{name}'", found[name]) + np.float32(DECAY) * w[name]
            v[name] = np.float32(MOMENTUM) * v[name] + g if name in v else g
            w[name] = Q(f"weights of '{name}'", w[name] - np.float32(RATE) * v[name])
            v[name] = Q(f"momentum_buffer of '{name}'", v[name])
    return w


def published(w: dict[str, np.ndarray], steps: int, quantizer: Callable[[int], Quantize]) -> dict[str, np.ndarray]:
    """The order of the authors' program: an accumulator swapped in, and the weights rounded a second time."""
    acc = {name: quantizer(0)(f"accumulator of '{name}'", value) for name, value in w.items()}
    w = {name: quantizer(0)(f"weights of '{name}'", value) for name, value in acc.items()}
    v: dict[str, np.ndarray] = {}
    for t in range(1, steps + 1):
        found, Q = gradients(w, t, quantizer(t - 1)), quantizer(t)
        for name in w:
            g = Q(f"gradients of '{name}'", found[name]) + np.float32(DECAY) * acc[name]
            v[name] = np.float32(MOMENTUM) * v[name] + g if name in v else g
            acc[name] = Q(f"accumulator of '{name}'", acc[name] - np.float32(RATE) * v[name])
            w[name] = Q(f"weights of '{name}'", acc[name])
            v[name] = Q(f"momentum_buffer of '{name}'", v[name])
            w[name] = Q(f"weights again of '{name}'", w[name])
    return w


def trained(precision: Precision, steps: int, model: nn.Module | None = None) -> dict[str, np.ndarray]:
    model = network() if model is None else model
    with precision.attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        for t in range(1, steps + 1):
            one_step(model, optimizer, t)
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    x, target = batch(t)
    optimizer.zero_grad()
    (model(x) * target).sum().backward()
    optimizer.step()


def start() -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in network().named_parameters()}


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_algorithm_2_to_nearest_is_that_of_the_paper_bit_by_bit() -> None:
    wanted = algorithm2(start(), 6, lambda t: block8)
    assert any((wanted[name] != start()[name]).any() for name in wanted)
    assert_equal(trained(Precision.swalp(rounding="nearest"), 6), wanted)


def keyed(precision: Precision) -> Callable[[int], Quantize]:
    """Stochastic rounding with the documented keys: (seed, what is rounded, steps done)."""

    def quantizer(t: int) -> Quantize:
        def Q(what: str, x: np.ndarray) -> np.ndarray:
            format: Any = precision.weights
            if what.startswith(("activations", "errors")):
                format = precision.activations
            own = key(precision.seed, what, t)
            return format.quantize(torch.from_numpy(x), rounding="stochastic", key=own).numpy()

        return Q

    return quantizer


def test_algorithm_2_stochastic_draws_the_documented_bits() -> None:
    precision = Precision.swalp(seed=5)
    assert_equal(trained(precision, 6), algorithm2(start(), 6, keyed(precision)))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_published_order_step_for_step(rounding: Any) -> None:
    precision = Precision.swalp(rounding=rounding, order="published", seed=1)
    quantizer = keyed(precision) if rounding == "stochastic" else lambda t: block8
    assert_equal(trained(precision, 6), published(start(), 6, quantizer))


def test_without_formats_nothing_changes() -> None:
    model = network()
    optimizer = sgd(model)
    for t in range(1, 5):
        one_step(model, optimizer, t)
    assert_equal(trained(Precision(), 4), {name: p.detach().numpy() for name, p in model.named_parameters()})


def test_full_precision_accumulator_collects_what_the_weights_cannot_show() -> None:
    """Steps of 2^-10 on a grid of 1/4: the weight stays until their sum rounds up."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with Precision(weights=FixedPoint(8, 2), rounding="nearest").attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=2.0**-10))
        seen = []
        for _ in range(200):
            optimizer.zero_grad()
            (-model(torch.ones(1, 1))).sum().backward()
            optimizer.step()
            seen.append(model.weight.item())
    assert seen[127:129] == [0.0, 0.25]  # 129 / 1024 is nearer to 1/4; 128 / 1024 ties to the even code
    assert seen[199] == 0.25


def test_weights_stand_on_their_grid_after_every_step_and_gradients_were_rounded() -> None:
    model, coarse = network(), BlockFloatingPoint(4, block=ByDimensions())
    with Precision(weights=coarse, accumulator=coarse, gradients=coarse).attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        for t in range(1, 4):
            one_step(model, optimizer, t)
            for parameter in model.parameters():
                assert torch.equal(coarse.quantize(parameter), parameter)
                assert parameter.grad is not None
                assert torch.equal(coarse.quantize(parameter.grad), parameter.grad)


ADAMS = [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad]


@pytest.mark.parametrize("kind", ADAMS)
def test_optimizers_with_squares_converge_in_8_bits(kind: Any) -> None:
    """A running square rounded to zero would be divided by; so squares stay full."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = x @ torch.randn(6, 3)
    model = network()
    with Precision.swalp().attached(model) as attached:
        optimizer = attached.optimizer(kind(model.parameters(), lr=0.03))
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        squares = [n for n in optimizer.state[model[0].weight] if n in ("exp_avg_sq", "square_avg", "sum")]
        assert squares
    assert max(losses[20:]) < losses[0]
    assert losses[-1] < 0.5 * losses[0]


def test_adam_momentum_is_on_the_grid_and_its_squares_are_not() -> None:
    model, coarse = network(), BlockFloatingPoint(4, block=ByDimensions())
    with Precision(momentum=coarse).attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.Adam(model.parameters()))
        one_step(model, optimizer, 1)
        one_step(model, optimizer, 2)
        state = optimizer.state[model[0].weight]
    assert torch.equal(coarse.quantize(state["exp_avg"]), state["exp_avg"])
    assert not torch.equal(coarse.quantize(state["exp_avg_sq"]), state["exp_avg_sq"])


def save_and_load(path: Path, state: Any) -> Any:
    save_state(path, state, "test")
    return load_state(path, "test")


WIDE = {"accumulator": BlockFloatingPoint(16, block=ByDimensions()), "momentum": BlockFloatingPoint(8)}
PLANS = {
    "swalp": Precision.swalp(),
    "published": Precision.swalp(order="published"),
    "wide accumulator": Precision(weights=BlockFloatingPoint(8), activations=BlockFloatingPoint(8), **WIDE),
    "master weights": Precision(weights=BlockFloatingPoint(6), momentum=BlockFloatingPoint(6)),
    "packed": Precision(weights=BlockFloatingPoint(8), **WIDE, packed=True),
    "straight through": Precision(weights=BlockFloatingPoint(4), straight_through=True, rounding="stochastic"),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(plan: str, tmp_path: Path) -> None:
    precision = PLANS[plan]
    wanted = trained(precision, 7)
    model = network()
    with precision.attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        for t in range(1, 4):
            one_step(model, optimizer, t)
        saved = save_and_load(tmp_path / "s", {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()})
    again = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with precision.attached(again) as attached:
        optimizer = attached.optimizer(sgd(again))
        again.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        for t in range(4, 8):
            one_step(again, optimizer, t)
    assert_equal({name: p.detach().numpy() for name, p in again.named_parameters()}, wanted)


def test_the_training_loop_resumes_bit_by_bit_with_evaluations_in_between(tmp_path: Path) -> None:
    x, y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3

    def run(count: int, checkpoint: Path | None, look: bool) -> dict[str, np.ndarray]:
        task = Task("t", network(), F.cross_entropy, (x, y), (x, y), batch_size=8)
        with Precision.swalp().attached(task.model) as attached:
            optimizer = attached.optimizer(sgd(task.model))
            for _ in epochs(task, optimizer, count=count, checkpoint=checkpoint):
                if look:
                    task.predict(task.theta(), x)
                    with torch.no_grad(), attached.evaluating("off"):
                        copy.deepcopy(task.model).train()(x)
        return {name: p.detach().numpy() for name, p in task.model.named_parameters()}

    wanted = run(4, None, look=False)
    run(2, tmp_path / "c", look=True)
    assert_equal(run(4, tmp_path / "c", look=True), wanted)


def test_packed_state_gives_the_same_bits_in_a_fraction_of_the_bytes() -> None:
    big = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
    twin = copy.deepcopy(big)
    whole = {name: BlockFloatingPoint(8) for name in ("weights", "accumulator", "momentum")}
    sizes = []
    for model, packed in ((big, False), (twin, True)):
        with Precision(**whole, packed=packed, order="algorithm2").attached(model) as attached:
            optimizer = attached.optimizer(sgd(model))
            for t in range(1, 5):
                one_step(model, optimizer, t)
            sizes.append(attached.nbytes)
            held = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
            assert all(isinstance(value, Packed) == packed for value in held)
    for one, other in zip(big.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    weights = sum(p.numel() for p in big.parameters())
    assert sizes[0] == {"weights": 4 * weights, "accumulator": 0, "state": 4 * weights}
    assert sizes[1]["state"] == weights + 4  # one byte a weight and one exponent for each of four tensors
    # weights, accumulator and momentum in float32 are what a simulation holds
    assert sum(sizes[1].values()) / (12 * weights) < 0.45


def test_packed_runs_and_plain_runs_read_each_others_state() -> None:
    plain, packed = (Precision(weights=BlockFloatingPoint(8), **WIDE, packed=flag) for flag in (False, True))
    wanted = trained(plain, 6)
    for first, second in ((plain, packed), (packed, plain)):
        model = network()
        with first.attached(model) as attached:
            optimizer = attached.optimizer(sgd(model))
            for t in range(1, 4):
                one_step(model, optimizer, t)
            state = optimizer.state_dict()
        with second.attached(model) as attached:
            optimizer = attached.optimizer(sgd(model))
            optimizer.load_state_dict(state)
            for t in range(4, 7):
                one_step(model, optimizer, t)
        assert_equal({name: p.detach().numpy() for name, p in model.named_parameters()}, wanted)


def test_a_plain_state_starts_accumulators_from_the_weights() -> None:
    model = network()
    plain = sgd(model)
    one_step(model, plain, 1)
    before = copy.deepcopy(model.state_dict())
    with Precision(weights=BlockFloatingPoint(4)).attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        optimizer.load_state_dict(plain.state_dict())
        model.load_state_dict(before)
        one_step(model, optimizer, 2)
        moved = attached._steps[0].held[0].accumulator
        assert isinstance(moved, Tensor)
        velocity = optimizer.state[model[0].weight]["momentum_buffer"]
        torch.testing.assert_close(moved, before["0.weight"] - RATE * velocity, rtol=0, atol=1e-7)


def test_weights_somebody_else_loads_are_the_new_ones() -> None:
    model, other = network(), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with Precision(weights=BlockFloatingPoint(8)).attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=2.0**-20))
        one_step(model, optimizer, 1)
        model.load_state_dict(other.state_dict())
        one_step(model, optimizer, 2)
    difference = (model[0].weight - other[0].weight).abs().max()
    assert difference <= 2.0**-7 * other[0].weight.abs().max() * 2


def test_a_closure_sees_low_precision_weights_and_the_step_their_rounded_gradients() -> None:
    coarse = BlockFloatingPoint(4, block=ByDimensions())
    precision = Precision(weights=coarse, gradients=coarse, rounding="nearest")
    model, twin = network(), network()
    with precision.attached(model) as attached, precision.attached(twin) as mirrored:
        optimizer, plain = attached.optimizer(sgd(model)), mirrored.optimizer(sgd(twin))
        for t in range(1, 4):

            def closure(t: int = t) -> float:
                for parameter in model.parameters():
                    assert torch.equal(coarse.quantize(parameter), parameter)
                x, target = batch(t)
                optimizer.zero_grad()
                loss = (model(x) * target).sum()
                loss.backward()
                return loss.item()

            assert isinstance(optimizer.step(closure), float)
            one_step(twin, plain, t)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_schedulers_and_parameter_groups_work_on() -> None:
    model = network()
    with Precision.swalp().attached(model) as attached:
        groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}]
        optimizer = attached.optimizer(torch.optim.SGD(groups, lr=0.25, momentum=0.5))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        rates = []
        for t in range(1, 4):
            one_step(model, optimizer, t)
            scheduler.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [[0.25, 0.125], [0.125, 0.0625], [0.0625, 0.03125]]


def test_frozen_parameters_and_missing_gradients_are_left_alone() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    with Precision.swalp(4).attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        before = model[0].weight.clone()
        one_step(model, optimizer, 1)
        optimizer.zero_grad()
        optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_exempt_layers_train_in_full_precision() -> None:
    model = network()
    with Precision.swalp(2, rules=(exempt("2"),)).attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        one_step(model, optimizer, 1)
    assert len(model[0].weight.unique()) <= 4 * 5
    assert len(model[2].weight.unique()) == 15


def test_rules_give_one_layer_other_formats() -> None:
    model = network()
    rule = override("2", weights="BlockFloatingPoint(2)", accumulator="BlockFloatingPoint(2)")
    with Precision(rules=(rule,)).attached(model) as attached:
        one_step(model, attached.optimizer(sgd(model)), 1)
    assert len(model[2].weight.unique()) <= 4
    assert len(model[0].weight.unique()) == 30


def test_detached_optimizer_is_a_plain_one() -> None:
    model, twin = network(), network()
    with Precision(momentum=BlockFloatingPoint(8), packed=True).attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        one_step(model, optimizer, 1)
    reference = sgd(twin)
    twin.load_state_dict(model.state_dict())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert set(optimizer.state_dict()) == set(reference.state_dict()) == {"state", "param_groups"}
    for t in range(2, 4):
        one_step(model, optimizer, t)
        one_step(twin, reference, t)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_that_are_not_finite_are_named_and_nothing_is_stepped() -> None:
    model = network()
    with Precision(weights=BlockFloatingPoint(8), gradients=BlockFloatingPoint(8)).attached(model) as attached:
        optimizer = attached.optimizer(sgd(model))
        before = model[0].weight.clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        model[2].bias.grad = torch.tensor([0.0, float("nan"), 0.0])
        with pytest.raises(NonFiniteError, match=r"gradients of '2.bias', step 1.*entry 1 of 3"):
            optimizer.step()
        assert torch.equal(model[0].weight, before)


def test_a_foreign_optimizer_is_refused() -> None:
    with (
        Precision.swalp().attached(network()) as attached,
        pytest.raises(PrecisionError, match="no parameter of this model"),
    ):
        attached.optimizer(sgd(network()))


def test_sparse_gradients_are_refused_by_name() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    with Precision(gradients=BlockFloatingPoint(8)).attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        model(torch.tensor([1])).sum().backward()
        with pytest.raises(PrecisionError, match="'weight' is sparse"):
            optimizer.step()


def test_different_seeds_draw_different_bits() -> None:
    runs = [trained(Precision.swalp(4, seed=seed), 3)["0.weight"] for seed in (0, 1, 0)]
    assert [(one == other).all() for one, other in pairwise(runs)] == [False, False]
    assert (runs[0] == runs[2]).all()


def test_state_that_is_divided_by_or_counted_stays_in_full_precision() -> None:
    """Centered RMSprop takes the root of square_avg - grad_avg^2; a 0-d parameter has counters of its own shape."""
    for kind, name in (
        (partial(torch.optim.RMSprop, centered=True), "grad_avg"),
        (torch.optim.NAdam, "mu_product"),
        (torch.optim.ASGD, "eta"),
    ):
        scale, plain = nn.ParameterList([torch.tensor(2.5)]), torch.tensor(2.5, requires_grad=True)
        other = kind([plain], lr=0.01)
        with Precision(momentum="bfp4", rounding="nearest").attached(scale) as attached:
            optimizer = attached.optimizer(kind(scale.parameters(), lr=0.01))
            for _ in range(3):
                scale[0].grad = plain.grad = torch.tensor(0.3)
                optimizer.step()
                other.step()
            assert torch.equal(optimizer.state[scale[0]][name], other.state[plain][name])

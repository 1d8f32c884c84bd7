import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightbank.formats import BlockFloatingPoint, FixedPoint
from weightbank.layout import Layout
from weightbank.lowprecision import Precision, exempt
from weightbank.task import Task

COARSE = FixedPoint(8, 2)


class Residual(nn.Module):
    """All by functions: F.relu, a residual sum, Tensor.sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        if self.fail:
            raise KeyboardInterrupt
        return (hidden + self.second(hidden)).sigmoid()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


X = torch.linspace(-1, 1, 24).view(4, 6)


def test_forward_sees_quantized_weights_and_the_parameters_stay() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with Precision(weights=COARSE, straight_through=True).attached(model):
        found = model(X)
        assert torch.equal(model[0].weight, before["0.weight"])
    layers = [COARSE.quantize(before[f"{n}.{p}"]) for n in (0, 2) for p in ("weight", "bias")]
    assert torch.equal(found, F.linear(F.relu(F.linear(X, *layers[:2])), *layers[2:]))


def test_gradients_pass_straight_through() -> None:
    model, twin = network(), network()
    for parameter in twin.parameters():
        parameter.data = COARSE.quantize(parameter.data)
    with Precision(weights=COARSE, straight_through=True).attached(model):
        F.cross_entropy(model(X), torch.arange(4) % 3).backward()
    F.cross_entropy(twin(X), torch.arange(4) % 3).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_functional_call_grad_vmap_and_task_predict_see_quantized_weights() -> None:
    model = network()
    y = torch.arange(4) % 3
    task = Task("t", model, F.cross_entropy, (X, y), (X, y))
    layout = Layout.of(model)
    theta = layout.ravel(model) + 0.3
    with Precision(weights=COARSE, activations=COARSE, straight_through=True).attached(model):
        predicted = task.predict(theta, X)
        assert torch.equal(task.predict(COARSE.quantize(theta), X), predicted)

        def loss(theta: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(model, layout.unravel(theta), (X,)), y)

        transformed = torch.func.grad(loss)(theta)
        leaf = theta.clone().requires_grad_()
        (ordinary,) = torch.autograd.grad(loss(leaf), leaf)
        assert torch.equal(transformed, ordinary)
        assert ordinary.abs().max() > 0
        several = torch.func.vmap(lambda t: task.predict(t, X))(torch.stack([theta, theta + 1]))
        assert torch.allclose(several[0], predicted, atol=1e-6)  # batched products are summed in another order
        curvature = torch.func.jacrev(torch.func.grad(loss))(theta)
        assert curvature.shape == (layout.size, layout.size)
        assert torch.allclose(curvature, curvature.T, atol=1e-5)
    assert not torch.equal(task.predict(theta, X), predicted)


def test_errors_are_quantized_inside_torch_func_too() -> None:
    model = network()
    layout, y = Layout.of(model), torch.arange(4) % 3
    theta = layout.ravel(model)
    with Precision(errors=BlockFloatingPoint(3), rounding="nearest").attached(model):
        F.cross_entropy(model(X), y).backward()
        wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found = torch.func.grad(
            lambda t: F.cross_entropy(torch.func.functional_call(model, layout.unravel(t), (X,)), y)
        )(theta)
    assert torch.equal(found, wanted)


def test_tied_weights_are_quantized_once_and_alike() -> None:
    model = network()
    tied = nn.Linear(6, 5)
    tied.weight = model[0].weight
    both = nn.ModuleList([model, tied])

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = both

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.parts
            assert isinstance(first, nn.Sequential)
            assert first[0].weight is second.weight
            assert torch.equal(COARSE.quantize(second.weight), second.weight)
            return first(x)

    two = Two()
    with Precision(weights=COARSE, straight_through=True, rounding="stochastic").attached(two):
        two(X)
    assert both[1].weight is model[0].weight


def test_training_moves_the_full_weights_under_a_coarse_grid() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    seen = []
    with Precision(weights=COARSE, straight_through=True).attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=1 / 64))
        for _ in range(20):
            optimizer.zero_grad()
            out = model(torch.ones(1, 1))
            seen.append(out.item())
            out.sum().backward()
            optimizer.step()
    assert set(seen) == {0.5, 0.25}
    assert model.weight.item() == 0.5 - 20 / 64


def test_an_interrupt_in_the_forward_pass_puts_the_parameters_back() -> None:
    model = Residual()
    own = model.first.weight
    with Precision(weights=COARSE, straight_through=True).attached(model, functional=True):
        model.fail = True
        with pytest.raises(KeyboardInterrupt):
            model(torch.ones(2, 4))
        assert model.first.weight is own
        assert torch.overrides._get_current_function_mode() is None


def test_functions_and_residual_sums_are_quantized_on_request() -> None:
    model = Residual()
    x = torch.linspace(-1, 1, 8).view(2, 4)
    with Precision(activations=COARSE, rounding="nearest").attached(model):
        bare = model(x)
    assert torch.equal(bare, model(x))
    with Precision(activations=COARSE, rounding="nearest").attached(model, functional=True):
        found = model(x)
    hidden = COARSE.quantize(F.relu(model.first(x)))
    total = COARSE.quantize(hidden + model.second(hidden))
    assert torch.equal(found, COARSE.quantize(total.sigmoid()))


def test_a_relu_module_is_quantized_once_under_functional() -> None:
    """Its inner function call is not a second place: twice the same bits would be drawn from other streams."""
    once, both = network(), network()
    with Precision(activations=COARSE).attached(once), Precision(activations=COARSE).attached(both, functional=True):
        assert torch.equal(once(X), both(X))


def test_an_exempt_activation_module_stays_exempt_under_functional() -> None:
    model = network()
    with Precision(activations=COARSE, rules=(exempt("1"),)).attached(model, functional=True):
        assert torch.equal(model(X), network()(X))


def test_functional_errors_are_quantized() -> None:
    model = Residual()
    with Precision(errors=FixedPoint(8, 0), rounding="nearest").attached(model, functional=True):
        model(torch.ones(2, 4)).mean().backward()  # all errors are below 1/2
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


def test_a_deep_copy_is_quantized_like_the_original() -> None:
    model = network()
    with Precision(weights=COARSE, straight_through=True).attached(model):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[0].weight.zero_()
        assert not torch.equal(twin(X), model(X))
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(X), model(X))


def test_exempt_modules_keep_full_weights_in_the_forward_pass() -> None:
    model = network()
    with Precision(weights=COARSE, straight_through=True, rules=(exempt("0"), exempt("2"))).attached(model):
        quantized = model(X)
    assert torch.equal(quantized, model(X))

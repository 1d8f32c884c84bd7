"""The squared backward recursion against a twin that writes every layer's Jacobian out and squares its entries."""

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import (
    Residual,
    SharedLinear,
    TinyTransformer,
    classes,
    conv,
    flattened,
    hessian_diagonal,
    mlp,
    numbers,
    randomized,
    residual_task,
    task_of,
)
from torch import nn

from weightbank.curvature import CurvatureError, backprop, ggn

EXACT = {"rtol": 1e-10, "atol": 1e-13}  # float64 sums in another order


def squared_jacobian(function, at):
    """(∂ output / ∂ at)², shape (numbers of output, *shape of at)."""
    jacobian = torch.autograd.functional.jacobian(function, at).square()
    return jacobian.reshape(-1, *at.shape)


def pulled(function, at, h):
    return torch.tensordot(h.reshape(-1), squared_jacobian(function, at), 1)


def through(layer, x, h, found):
    """h for the input of a layer; adds h for its weights to `found`, by parameter."""
    for name, parameter in layer.named_parameters():

        def of_parameter(value, name=name):
            return torch.func.functional_call(layer, {name: value}, (x,))

        found[parameter] = found.get(parameter, 0) + pulled(of_parameter, parameter.detach(), h)
    return pulled(layer, x, h)


def backwards(layers, x, h, found):
    """h for the input of a list of layers."""
    inputs = [x]
    for layer in layers:
        inputs.append(layer(inputs[-1]).detach())
    for layer, value in zip(reversed(layers), reversed(inputs[:-1]), strict=True):
        h = through(layer, value, h, found)
    return h


def softmax_start(z):
    p = z.detach().softmax(-1)
    return p * (1 - p)


def ordered(task, found, units):
    parts = [found.get(parameter, torch.zeros_like(parameter)) for parameter in task.model.parameters()]
    return torch.cat([part.detach().reshape(-1) for part in parts]) / units


def sequential_oracle(task, x):
    layers, found = list(task.model.eval()), {}
    for row in x:
        backwards(layers, row[None], softmax_start(task.model(row[None])), found)
    return ordered(task, found, len(x))


def test_mlp_equals_the_recursion_written_out_by_hand():
    model = mlp()
    x, y = numbers(6, 4), classes(6)
    first, second, third = (model[i].requires_grad_(False) for i in (0, 2, 4))
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row in x:
        a1 = first(row)
        a2 = second(a1.relu())
        h3 = softmax_start(third(a2.relu()))
        h2 = torch.tensor([sum(h3[i] * third.weight[i, j] ** 2 for i in range(3)) * (a2[j] > 0) for j in range(4)])
        h1 = torch.tensor([sum(h2[i] * second.weight[i, j] ** 2 for i in range(4)) * (a1[j] > 0) for j in range(5)])
        for place, (h, inputs) in enumerate(((h1, row), (h2, a1.relu()), (h3, a2.relu()))):
            for i in range(len(h)):
                for j in range(len(inputs)):
                    expected[2 * place][i, j] += h[i] * inputs[j] ** 2 / 6
                expected[2 * place + 1][i] += h[i] / 6
    flat = torch.cat([part.detach().reshape(-1) for part in expected])
    torch.testing.assert_close(backprop(task_of(model.requires_grad_(True), x, y)), flat, **EXACT)


def test_strided_grouped_dilated_and_transposed_convolutions_equal_the_written_out_recursion():
    x = numbers(3, 2, 9, 7)
    task = task_of(conv(), x, classes(3))
    expected = sequential_oracle(task, x)
    for batch_size in (1, 2, None):
        torch.testing.assert_close(backprop(task, batch_size=batch_size), expected, **EXACT)


LAYERS = {
    "average": [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)],
    "average with borders": [nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), nn.Flatten(), nn.Linear(40, 3)],
    "average without borders": [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(30, 3)],
    "average with a divisor": [nn.AvgPool2d((2, 3), divisor_override=5), nn.Flatten(), nn.Linear(18, 3)],
    "average of sequences": [nn.Flatten(2), nn.AvgPool1d(5, 3, padding=2), nn.Flatten(), nn.Linear(36, 3)],
    "uneven adaptive average": [nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(12, 3)],
    "adaptive average of sequences": [nn.Flatten(2), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(8, 3)],
    "adaptive maximum": [nn.AdaptiveMaxPool2d((2, 3)), nn.Flatten(), nn.Linear(12, 3)],
    "smooth activations": [nn.Tanh(), nn.Flatten(), nn.Linear(108, 4), nn.GELU(), nn.Linear(4, 3), nn.Sigmoid()],
    "clipped activations": [nn.Flatten(), nn.Linear(108, 4), nn.ReLU6(), nn.Hardtanh(-0.5, 0.5), nn.Linear(4, 3)],
    "batch norm without weights": [nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(56, 3)],
    "channels rearranged": [
        nn.Unflatten(1, (2, 1)),
        nn.Flatten(1, 2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(108, 3),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_passes_on_squared_coefficients(name):
    stem = [nn.Conv2d(1, 2, 3, padding=1)]
    x = numbers(2, 1, 6, 9)
    task = task_of(randomized(nn.Sequential(*stem, *LAYERS[name])), x, classes(2))
    torch.testing.assert_close(backprop(task), sequential_oracle(task, x), **EXACT)


def test_average_over_n_passes_one_over_n_squared():
    x = numbers(4, 1, 1, 6)
    pooled = task_of(nn.Sequential(nn.Conv2d(1, 3, 1).double(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), x, classes(4))
    p = pooled.model(x).detach().softmax(-1)
    expected = ((p * (1 - p))[:, :, None] * x[:, :, 0].square()).sum(-1).mean(0) / 36
    torch.testing.assert_close(backprop(pooled)[:3], expected, **EXACT)


def test_both_branches_of_a_residual_sum_get_the_same():
    task = residual_task()
    model: Residual = task.model.eval()
    x = torch.cat([x for x, _ in task.batches()])
    found = {}
    for row in x:
        a = F.relu(model.norm(model.stem(row[None]))).detach()
        b = (a + model.inner(a)).detach()
        c = F.relu(b)
        end = [model.pool, nn.Flatten(), model.head]
        wide, skip = [model.wide, nn.ReLU()], [model.skip]
        summed = (F.relu(model.wide(c)) + model.skip(c)).detach()
        h = backwards(end, summed, softmax_start(model(row[None])), found)
        h = backwards(wide, c, h, found) + backwards(skip, c, h, found)
        h = backwards([nn.ReLU()], b, h, found)
        h = h + backwards([model.inner], a, h, found)
        backwards([model.stem, model.norm, nn.ReLU()], row[None], h, found)
    torch.testing.assert_close(backprop(task), ordered(task, found, len(x)), **EXACT)


class Joined(nn.Module):
    def __init__(self, join) -> None:
        super().__init__()
        self.one, self.two, self.join = nn.Linear(4, 3), nn.Linear(4, 3), join

    def forward(self, x):
        return self.join(self.one(x), self.two(x))


@pytest.mark.parametrize(
    ("join", "factors"),
    [
        (lambda a, b: a + b, (1, 1)),
        (lambda a, b: a - b, (1, 1)),
        (lambda a, b: torch.add(a, b, alpha=3), (1, 9)),
        (lambda a, b: torch.sub(a, other=b, alpha=0.5), (1, 0.25)),
        (lambda a, b: -a + (1 - b), (1, 1)),
        (lambda a, b: 2 * a + b / 4, (4, 1 / 16)),
        (lambda a, b: a * torch.tensor([3]) + b.div(torch.tensor([0.5]).double()), (9, 4)),
        (lambda a, b: a.clone().add_(b).mul_(2), (4, 4)),
        (lambda a, b: torch.cat([a, b], 1).view(-1, 2, 3).sum(1), (1, 1)),
        (lambda a, b: torch.stack([a, b]).mean(0), (0.25, 0.25)),
        (lambda a, b: torch.cat([a[:, :1], b[:, 1:]], 1) + 0 * a, ((1, 0, 0), (0, 1, 1))),
    ],
)
def test_joined_branches_equal_their_squared_coefficients(join, factors):
    x, y = numbers(7, 4), classes(7)
    model = randomized(Joined(join))
    task = task_of(model, x, y)
    p = model(x).detach().softmax(-1)
    h = (p * (1 - p)).T @ x.square() / 7
    found = task.layout.unravel(backprop(task))
    for name, factor in zip(("one.weight", "two.weight"), factors, strict=True):
        scale = torch.as_tensor(factor, dtype=torch.float64).reshape(-1, 1)
        torch.testing.assert_close(found[name], scale * h, **EXACT)


def test_one_layer_is_exact():
    x = numbers(9, 4)
    for loss, y in (
        (F.cross_entropy, classes(9)),
        (F.mse_loss, numbers(9, 3)),
        (F.binary_cross_entropy_with_logits, numbers(9, 3).sigmoid()),
    ):
        task = task_of(randomized(nn.Linear(4, 3)), x, y, loss, batch_size=9)
        torch.testing.assert_close(backprop(task, batch_size=4), hessian_diagonal(task), **EXACT)
        torch.testing.assert_close(backprop(task), ggn(task), **EXACT)


def test_log_probabilities_have_the_recursion_of_their_logits():
    model, x, y = mlp(), numbers(6, 4), classes(6)
    by_log = task_of(nn.Sequential(model, nn.LogSoftmax(-1)), x, y, F.nll_loss)
    torch.testing.assert_close(backprop(by_log), backprop(task_of(model, x, y)), rtol=1e-9, atol=1e-12)


def test_activations_in_place_change_nothing():
    def network(inplace):
        return randomized(
            nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace), nn.Conv2d(2, 2, 3), nn.LeakyReLU(0.1, inplace),
                nn.Flatten(), nn.Dropout(0.1, inplace), nn.Linear(8, 4), nn.SiLU(inplace), nn.Linear(4, 3),
            )
        )  # fmt: skip

    x, y = numbers(4, 1, 6, 6), classes(4)
    assert torch.equal(backprop(task_of(network(True), x, y)), backprop(task_of(network(False), x, y)))


def test_shared_weights_get_the_sum_over_their_uses():
    model = randomized(SharedLinear())
    x = numbers(3, 4)
    task = task_of(model, x, classes(3))
    found = {}
    for row in x:
        backwards([model.linear, nn.ReLU(), model.linear], row[None], softmax_start(model(row[None])), found)
    torch.testing.assert_close(backprop(task), ordered(task, found, 3), **EXACT)


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.out, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function

    def forward(self, x):
        return self.out(self.function(self.linear(x)))


def written_into(x):
    y = x + 1
    y[:, 0] = 0.0
    return y


def written_through_a_view(x):
    y = x + 1
    y.view(-1).mul_(2.0)
    return y


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.softmax(-1), "no squared rule for softmax in 'Applied' .*take ggn_sampled"),
        (lambda x: x.log_softmax(-1), "no squared rule for log_softmax"),
        (lambda x: x * x, "combined with itself"),
        (lambda x: x / x.sum(), "division by something that depends on weights"),
        (Doubling.apply, "cannot see"),
        (written_into, "changed in place through a view or a slice"),
        (written_through_a_view, "changed in place through a view or a slice"),
    ],
)
def test_what_the_recursion_cannot_follow_is_named(function, message):
    task = task_of(randomized(Applied(function)), numbers(5, 4), classes(5))
    with pytest.raises(CurvatureError, match=message):
        backprop(task)


def test_the_layer_without_a_rule_is_named():
    task = task_of(randomized(TinyTransformer()), classes(2, 3, count=4), classes(2, 3, count=4), flattened)
    with pytest.raises(CurvatureError, match="layer_norm in 'encoder.norm2'"):
        backprop(task)

"""The exact Gauss-Newton diagonal against explicit loops and against Hessians."""

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import (
    TASKS,
    channels_second,
    classes,
    conv_task,
    flattened,
    hessian_diagonal,
    mlp,
    mlp_task,
    numbers,
    outputs_jacobian,
    randomized,
    softmax_ggn,
    task_of,
    transformer_task,
    whole,
)
from torch import nn

from weightbank.curvature import fisher_empirical, ggn
from weightbank.curvature.ggn import MEMORY
from weightbank.curvature.per_example import PerExample
from weightbank.task import Task

EXACT = {"rtol": 1e-10, "atol": 1e-13}  # float64 sums in another order


@pytest.mark.parametrize("name", TASKS)
def test_ggn_is_the_diagonal_of_the_gauss_newton_matrix(name):
    task = TASKS[name]()
    torch.testing.assert_close(ggn(task), softmax_ggn(task), **EXACT)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_ggn_is_the_hessian_diagonal_of_piecewise_linear_networks(name):
    task = TASKS[name]()
    assert task.layout.size > 40
    torch.testing.assert_close(ggn(task), hessian_diagonal(task), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_loader_batches_and_cuts_of_them_change_nothing(name):
    expected = ggn(TASKS[name]())
    for loaded, cut in ((1, None), (7, None), (100, None), (100, 2)):
        torch.testing.assert_close(ggn(TASKS[name](batch_size=loaded), batch_size=cut), expected, **EXACT)


@pytest.mark.parametrize("memory", [1, 5_000, MEMORY])
def test_memory_bound_changes_nothing(memory):
    torch.testing.assert_close(ggn(conv_task(), memory=memory), ggn(conv_task()), **EXACT)


@pytest.mark.parametrize("name", TASKS)
def test_one_by_one_and_many_at_once_agree(name, monkeypatch):
    vectorized = ggn(TASKS[name]())
    monkeypatch.setattr(PerExample, "_many_at_once", None)  # calling it raises, so every example is taken alone
    torch.testing.assert_close(ggn(TASKS[name]()), vectorized, **EXACT)


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "transformer", "layer norm", "frozen"])
def test_vmap_serves_these_networks(name, monkeypatch):
    alone, original = [], PerExample._one_by_one

    def counted(self, examples):
        alone.append(len(examples))
        return original(self, examples)

    monkeypatch.setattr(PerExample, "_one_by_one", counted)
    for function in (ggn, fisher_empirical):
        alone.clear()
        function(TASKS[name]())
        assert alone == [1]  # the one example of the comparison


class Branching(nn.Module):
    """Looks at data to choose a path, which vmap cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return torch.cat([self.one(row[None]) if float(row.detach()[0]) > 0 else self.two(row[None]) for row in x])


def test_models_beyond_vmap_are_done_one_by_one():
    task = task_of(randomized(Branching()), numbers(9, 4), classes(9))
    torch.testing.assert_close(ggn(task), softmax_ggn(task), **EXACT)


def test_images_takes_the_first_examples():
    task = mlp_task(batch_size=4)
    x, y = whole(task)
    torch.testing.assert_close(ggn(task, images=6), ggn(task_of(task.model, x[:6], y[:6])), **EXACT)
    torch.testing.assert_close(ggn(task, images=600), ggn(task), **EXACT)


def test_flattened_and_channels_second_sequences_are_the_same():
    torch.testing.assert_close(ggn(transformer_task(flattened)), ggn(transformer_task(channels_second)), **EXACT)


def test_tied_weights_stand_once_and_get_the_curvature_of_both_uses():
    task = transformer_task()
    assert "output.weight" not in task.layout.names
    assert float(ggn(task)[task.layout.slice("embedding.weight")].min()) > 0


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.3),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), label_smoothing=0.3),
        nn.CrossEntropyLoss(ignore_index=1),
        lambda z, y: F.nll_loss(F.log_softmax(z, -1), y),
        lambda z, y: F.nll_loss(F.log_softmax(z, -1), y, ignore_index=2),
        lambda z, y: F.cross_entropy(z / 2, F.one_hot(y, 3).double() * 0.8 + 0.1),
        lambda z, y: F.cross_entropy(
            z, F.one_hot(y, 3).double(), weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), label_smoothing=0.1
        ),
    ],
)
def test_every_cross_entropy_equals_the_hessian_of_its_own_mean(loss):
    task = mlp_task(loss=loss, batch_size=11)
    torch.testing.assert_close(ggn(task, batch_size=3), hessian_diagonal(task), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.mse_loss, numbers(11, 3)),
        (nn.MSELoss(), numbers(11, 3)),
        (lambda z, y: F.mse_loss(z[:, 0], y[:, 0]), numbers(11, 3)),
        (F.binary_cross_entropy_with_logits, numbers(11, 3).sigmoid()),
        (
            nn.BCEWithLogitsLoss(
                weight=torch.tensor([1.0, 3.0, 0.5]).double(), pos_weight=torch.tensor([2.0, 1.0, 0.1]).double()
            ),
            numbers(11, 3).gt(0).double(),
        ),
    ],
)
def test_squared_errors_and_binary_entropies_equal_the_hessian_of_their_own_mean(loss, target):
    task = task_of(mlp(), numbers(11, 4), target, loss, batch_size=11)
    torch.testing.assert_close(ggn(task, batch_size=2), hessian_diagonal(task), rtol=1e-9, atol=1e-12)


def test_squared_error_of_one_linear_layer_is_two_mean_squares_over_outputs():
    x = numbers(10, 4)
    task = task_of(nn.Linear(4, 3).double(), x, numbers(10, 3), F.mse_loss)
    h = ggn(task)[task.layout.slice("weight")].view(3, 4)
    torch.testing.assert_close(h, (2 * x.square().mean(0) / 3).expand(3, 4), **EXACT)


def test_log_probabilities_have_the_curvature_of_their_logits():
    logits, model = mlp(), nn.Sequential(mlp(), nn.LogSoftmax(-1))
    x, y = numbers(9, 4), classes(9)
    by_log = ggn(task_of(model, x, y, F.nll_loss))
    torch.testing.assert_close(by_log, ggn(task_of(logits, x, y)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_log, ggn(task_of(model, x, y, F.cross_entropy)), **EXACT)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, features, factor):
        return self.linear(features * factor)


def test_inputs_by_name_with_a_shared_one():
    x, y = numbers(8, 4), classes(8)
    model = randomized(Named())
    factor = torch.tensor([1.0, 2.0, 0.5, 1.0]).double()[None]
    batches = [({"features": x[i : i + 4], "factor": factor}, y[i : i + 4]) for i in (0, 4)]
    found = ggn(Task("named", model, F.cross_entropy, batches, batches), batch_size=3)
    torch.testing.assert_close(found, ggn(task_of(model.linear, x * factor, y)), **EXACT)


def test_float32_models_give_float32_scores_near_the_float64_ones():
    task = conv_task()
    exact = ggn(task)
    x, y = whole(task)
    single = task_of(conv_task().model.float(), x.float(), y)
    found = ggn(single)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert float((found - exact).abs().max()) < 1e-4 * float(exact.max())  # a few hundred roundings of 6e-8


def test_jacobian_oracle_is_that_of_torch_func():
    task = mlp_task()
    x, _ = whole(task)
    jacobian = torch.func.jacrev(lambda theta: task.predict(theta, x))(task.theta())
    torch.testing.assert_close(outputs_jacobian(task), jacobian.flatten(0, 1), **EXACT)

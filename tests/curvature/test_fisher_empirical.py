"""Squared gradients at the labels of the data against a loop over examples."""

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import TASKS, flattened, mlp, mlp_task, numbers, task_of, transformer_task, whole

from weightbank.curvature import fisher_empirical, ggn

EXACT = {"rtol": 1e-10, "atol": 1e-13}  # float64 sums in another order


def looped(task, units=1):
    x, y = whole(task)
    theta, total = task.theta(), 0.0
    for row, label in zip(x, y, strict=True):
        gradient = torch.func.grad(lambda t, r=row, c=label: task.loss(task.predict(t, r[None]), c[None]))(theta)
        total = total + (units * gradient).square()
    return total / (units * len(y))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "transformer"])
def test_it_is_the_mean_squared_gradient_of_single_examples(name):
    expected = looped(TASKS[name]())
    for batch_size in (1, 7, 100):
        torch.testing.assert_close(fisher_empirical(TASKS[name](batch_size=batch_size)), expected, **EXACT)


def test_positions_of_a_sequence_are_units():
    task = transformer_task(flattened)
    torch.testing.assert_close(fisher_empirical(task), looped(task, units=3), **EXACT)


@pytest.mark.parametrize(
    ("loss", "units"),
    [
        (F.mse_loss, 3),
        (lambda z, y: F.binary_cross_entropy_with_logits(z, y.sigmoid()), 3),
        (F.smooth_l1_loss, 1),
        (lambda z, y: (z - y).abs().pow(1.5).mean(), 1),
        (lambda z, y: F.mse_loss(z, y) + 0.1 * z.square().mean(), 1),
    ],
)
def test_any_mean_loss_will_do(loss, units):
    task = task_of(mlp(), numbers(11, 4), numbers(11, 3, seed=8), loss)
    torch.testing.assert_close(fisher_empirical(task), looped(task, units), **EXACT)


def test_label_smoothing_and_soft_labels_enter_the_gradient():
    for loss in (
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2),
        lambda z, y: F.cross_entropy(z, F.one_hot(y, 3).double() * 0.7 + 0.1),
    ):
        task = mlp_task(loss=loss)
        torch.testing.assert_close(fisher_empirical(task), looped(task), **EXACT)


def test_ignored_labels_count_for_nothing():
    task = mlp_task(loss=lambda z, y: F.cross_entropy(z, y, ignore_index=1))
    x, y = whole(task)
    kept = task_of(task.model, x[y != 1], y[y != 1])
    torch.testing.assert_close(fisher_empirical(task), looped(kept), **EXACT)


def test_class_weights_weigh_the_squares():
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    task = mlp_task(loss=lambda z, y: F.cross_entropy(z, y, weight=weight))
    x, y = whole(task)
    parts = [looped(task_of(task.model, x[y == c], y[y == c])) * int((y == c).sum()) for c in range(3)]
    expected = sum(w * part for w, part in zip(weight, parts, strict=True)) / weight[y].sum()
    torch.testing.assert_close(fisher_empirical(task), expected, **EXACT)


def test_it_vanishes_on_perfectly_fitted_data_where_gauss_newton_does_not():
    model, x = mlp(), numbers(6, 4)
    task = task_of(model, x, model.eval()(x).detach(), F.mse_loss)
    assert float(fisher_empirical(task).max()) < 1e-28  # squares of roundings of 1e-16
    assert float(ggn(task).max()) > 0.1

"""Which losses are recognised, and what is said of the others."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import classes, mlp, mlp_task, numbers, task_of
from torch import nn

from weightbank.curvature import CurvatureError, ggn, ggn_sampled
from weightbank.curvature.losses import any_head_of, head_of


def test_functions_modules_partials_and_wrappers_are_the_same_loss():
    def wrapped(output, target):
        """As a training script has it."""
        return nn.CrossEntropyLoss(reduction="mean")(output.float().double(), target.long())

    expected = ggn(mlp_task())
    for loss in (nn.CrossEntropyLoss(), partial(F.cross_entropy, ignore_index=-1), lambda z, y: F.cross_entropy(z, y)):
        assert torch.equal(ggn(mlp_task(loss=loss)), expected)
    rounded = float(torch.finfo(torch.float32).eps)
    assert float((ggn(mlp_task(loss=wrapped)) - expected).abs().max()) < 10 * rounded * float(expected.max())


def test_transformed_outputs_are_curved_through_the_transformation():
    x, y = numbers(8, 4), classes(8)
    cold = task_of(mlp(), x, y, lambda z, t: F.cross_entropy(z / 0.5, t))
    assert torch.equal(ggn(cold), ggn(task_of(nn.Sequential(mlp(), _Times(2.0)), x, y)))


class _Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x / (1 / self.factor)


def hinge(output, target):
    return F.multi_margin_loss(output, target)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (hinge, "loss 'hinge' calls none of F.cross_entropy.*hutchinson.*fisher_empirical"),
        (nn.MultiMarginLoss(), "loss 'MultiMarginLoss' calls none"),
        (lambda z, y: 2 * F.cross_entropy(z, y), "calls cross_entropy and returns something else"),
        (lambda z, y: F.cross_entropy(z, y) + F.mse_loss(z, z.detach()), "calls cross_entropy, mse_loss"),
        (partial(F.cross_entropy, reduction="sum"), "reduction='sum'.*wanted reduction='mean'"),
        (lambda z, y: F.cross_entropy(z, z.softmax(-1)), "targets depend on the weights"),
        (lambda z, y: F.cross_entropy(z.detach(), y), "does not depend on the weights"),
        (lambda z, y: F.mse_loss(F.one_hot(y, 3).double(), z), "targets depend on the weights"),
        (F.nll_loss, "nll_loss wants log-probabilities.*end the model in log_softmax"),
    ],
)
@pytest.mark.parametrize("function", [ggn, ggn_sampled])
def test_losses_that_cannot_be_handled_are_named(loss, message, function):
    with pytest.raises(CurvatureError, match=message):
        function(mlp_task(loss=loss))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_broadcast_targets_are_refused():
    task = task_of(nn.Linear(4, 1).double(), numbers(6, 4), numbers(6), F.mse_loss)
    with pytest.raises(CurvatureError, match=r"outputs of shape \(4, 1\) came with targets of shape \(4,\)"):
        ggn(task)


def test_the_recorded_loss_has_its_usual_value_and_no_graph():
    z = numbers(5, 3).requires_grad_()
    seen = []

    def loss(output, target):
        seen.append(F.cross_entropy(output, target))
        return seen[-1]

    head = head_of(loss, z, classes(5))
    assert head.z is z
    assert not seen[0].requires_grad
    assert torch.equal(seen[0], F.cross_entropy(z, classes(5)).detach())


def test_an_unknown_loss_is_its_own_output_without_curvature():
    z = numbers(5, 3).requires_grad_()
    with pytest.raises(CurvatureError, match="reduction='sum'"):  # no mean: scores would grow with the batch
        any_head_of(partial(F.cross_entropy, reduction="sum"), z, classes(5))
    head = any_head_of(hinge, z, classes(5))
    assert float(head.z.detach()) == pytest.approx(5 * float(hinge(z.detach(), classes(5))))
    assert (float(head.total), float(head.observed()), float(head.diagonal())) == (5.0, 1.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["signs", "labels"])
@pytest.mark.parametrize(
    ("loss", "z", "target"),
    [
        (F.cross_entropy, numbers(1, 4), torch.tensor([2])),
        (partial(F.cross_entropy, label_smoothing=0.2), numbers(4), torch.tensor(2)),
        (F.cross_entropy, numbers(1, 3, 2), torch.tensor([[0, -100]])),
        (F.mse_loss, numbers(1, 3), numbers(1, 3, seed=4)),
        (F.binary_cross_entropy_with_logits, numbers(1, 3), numbers(1, 3).sigmoid()),
    ],
)
def test_random_outputs_have_the_covariance_of_the_losses_hessian(loss, z, target, probe):
    head = head_of(loss, z.requires_grad_(), target)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([getattr(head, probe)(generator).reshape(-1) for _ in range(4_000)])
    hessian = torch.autograd.functional.hessian(lambda at: float(head.total) * loss(at, target), z.detach())
    hessian = hessian.reshape(z.numel(), z.numel())
    products = draws[:, :, None] * draws[:, None, :]
    stderr = products.std(0) / len(draws) ** 0.5
    assert bool(((products.mean(0) - hessian).abs() <= 5.5 * stderr + 1e-12).all())  # 36 entries at most
    columns = torch.stack([column.reshape(-1) for column in head.columns()])
    torch.testing.assert_close(columns.T @ columns, hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.diagonal().reshape(-1), hessian.diagonal(), rtol=1e-10, atol=1e-12)

"""Divergences from a head: zero at its own outputs, with the Hessian that its columns make, whatever the labels."""

import math

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import DOUBLE, classes, numbers, seeded
from torch import Tensor

from weightbank.curvature.heads import Elementwise, Head, Softmax, loss_itself, sigmoid_entropy, squared_error


def heads() -> dict[str, Head]:
    z, y = numbers(4, 3), classes(4)
    real = numbers(4, 3, seed=2)
    binary = classes(4, 3, count=2, seed=3).to(DOUBLE)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)
    return {
        "softmax": Softmax(z, y),
        "weighted softmax with a missing label": Softmax(z, torch.tensor([0, -100, 2, 1]), weight, smoothing=0.1),
        "softmax of pixels": Softmax(numbers(2, 3, 2), classes(2, 2)),
        "squared": squared_error(z, real),
        "weighted squared": squared_error(z, real, weight.expand(4, 3)),
        "sigmoid": sigmoid_entropy(z, binary),
        "weighted sigmoid": sigmoid_entropy(z, binary, weight, weight.flip(0)),
    }


@pytest.mark.parametrize("name", heads())
def test_divergence_is_zero_and_flat_at_home_and_curved_as_the_loss(name: str) -> None:
    head = heads()[name]
    own = head.z.detach().clone()
    assert float(head.divergence(own)) == pytest.approx(0, abs=1e-12)
    gradient = torch.func.grad(head.divergence)(own)
    assert float(gradient.abs().max()) < 1e-12
    factor = torch.stack([column.reshape(-1) for column in head.columns()], 1)
    hessian = torch.autograd.functional.hessian(head.divergence, own).reshape(own.numel(), own.numel())
    torch.testing.assert_close(hessian, factor @ factor.T, rtol=1e-9, atol=1e-12)
    for seed in range(20):
        far = own + 10 * torch.randn(own.shape, generator=seeded(seed), dtype=DOUBLE)
        assert float(head.divergence(far)) > 0


def test_divergences_against_torch() -> None:
    z, other = numbers(5, 3), numbers(5, 3, seed=4)
    law = torch.distributions.Categorical
    kl = torch.distributions.kl_divergence(law(logits=z), law(logits=other)).sum()
    assert float(Softmax(z, classes(5)).divergence(other)) == pytest.approx(float(kl), rel=1e-12)
    bernoulli = torch.distributions.Bernoulli
    kl = torch.distributions.kl_divergence(bernoulli(logits=z), bernoulli(logits=other)).sum()
    assert float(sigmoid_entropy(z, torch.ones_like(z)).divergence(other)) == pytest.approx(float(kl), rel=1e-10)
    assert float(squared_error(z, z).divergence(other)) == pytest.approx(float(F.mse_loss(other, z, reduction="sum")))


def test_masked_classes_count_nothing_where_both_exclude_them() -> None:
    z = torch.tensor([[0.0, 1.0, -math.inf]], dtype=DOUBLE)
    other = torch.tensor([[0.5, 1.0, -math.inf]], dtype=DOUBLE, requires_grad=True)
    head = Softmax(z, torch.tensor([0]))
    value = head.divergence(other)
    plain = Softmax(z[:, :2], torch.tensor([0])).divergence(other[:, :2])
    assert float(value.detach()) == pytest.approx(float(plain.detach()))
    value.backward()
    gradient: Tensor | None = other.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    assert float(head.divergence(torch.tensor([[0.0, -math.inf, 0.0]], dtype=DOUBLE))) == math.inf


def test_a_loss_of_its_own_diverges_by_its_own_rise() -> None:
    head = loss_itself(torch.tensor(2.0), 10)
    assert isinstance(head, Elementwise)
    assert float(head.divergence(torch.tensor(23.0))) == pytest.approx(3.0)

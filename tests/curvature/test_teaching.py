import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import classes, numbers
from torch import Tensor

from weightbank.curvature.teaching import divergence, mean_divergence


def test_what_a_loss_does_to_outputs_first_is_done_to_both() -> None:
    z, other, y = numbers(6, 2, 3), numbers(6, 2, 3, seed=4), classes(6, 2)
    y[0, 0] = -100

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1) / 2, target.flatten(), ignore_index=-100)

    total, units = divergence(loss, other, z, y)
    kept = y.flatten() != -100
    p, q = ((each / 2).flatten(0, 1)[kept].softmax(1) for each in (z, other))
    assert float(units) == 11
    assert float(total) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-10)
    assert float(mean_divergence(loss, other, z, y)) == pytest.approx(float(total) / 11)
    assert float(mean_divergence(loss, other, z, torch.full_like(y, -100))) == 0.0


def test_a_loss_of_no_known_kind_is_compared_itself() -> None:
    z, other, y = numbers(6, 3), numbers(6, 3, seed=4), classes(6)
    for loss in (F.multi_margin_loss, lambda output, target: F.cross_entropy(output, target, reduction="sum") / 6):
        rise = float(loss(other, y) - loss(z, y))
        assert float(mean_divergence(loss, other, z, y)) == pytest.approx(rise, rel=1e-9)

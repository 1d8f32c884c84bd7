"""Sign probes of the Hessian: exact without off-diagonal entries, unbiased with them, negative where it is."""

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import hessian_diagonal, mlp, mlp_task, norm_task, numbers, seeded, task_of, transformer_task
from torch import nn

from weightbank.curvature import hutchinson
from weightbank.errors import DataError


class Scale(nn.Module):
    """One weight per output: the Hessian is diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-1, 2, 4, dtype=torch.float64))

    def forward(self, x):
        return x * self.scale.sin()


def test_one_probe_is_exact_for_a_diagonal_hessian():
    for loss in (F.mse_loss, lambda z, y: (z - y).pow(4).mean()):
        task = task_of(Scale(), numbers(7, 4), numbers(7, 4, seed=3), loss, batch_size=7)
        expected = hessian_diagonal(task)
        assert float(expected.min()) < 0
        torch.testing.assert_close(hutchinson(task, batch_size=2), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp_task, norm_task, transformer_task])
def test_probes_average_to_the_hessian_diagonal(make):
    task = make(batch_size=2)
    sampled = torch.stack([hutchinson(task, probes=4, generator=seeded(s)) for s in range(50)])
    stderr = sampled.std(0) / 50**0.5
    error = (sampled.mean(0) - hessian_diagonal(task)).abs()
    # Sums of signs are close to normal; |t| > 6 of 50 draws has a chance of 2e-7 for each of 200 weights.
    assert bool((error <= 6 * stderr + 1e-12).all())
    assert float(stderr.max()) > 0


def test_more_probes_have_less_variance():
    task = mlp_task()
    spread = [
        torch.stack([hutchinson(task, probes=probes, generator=seeded(s)) for s in range(40)]).var(0).mean()
        for probes in (1, 8)
    ]
    assert 4 < float(spread[0] / spread[1]) < 16  # 8 expected; 40 draws fix each variance to about 22 %


def test_loss_without_curvature_has_none():
    task = task_of(nn.Linear(4, 3).double(), numbers(6, 4), numbers(6, 3), lambda z, y: (z - y).mean())
    assert torch.equal(hutchinson(task), torch.zeros(15, dtype=torch.float64))


def test_zero_probes_are_refused():
    with pytest.raises(DataError, match="probes=0"):
        hutchinson(task_of(mlp(), numbers(3, 4), numbers(3, 3), F.mse_loss), probes=0)

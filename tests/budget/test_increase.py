import math

import pytest
import torch
from torch import Tensor, nn

from weightbank.budget import Together, displacement, expected_increase, measured_increase
from weightbank.distributions import Gaussian, Point
from weightbank.errors import DataError, LayoutError
from weightbank.layout import Layout
from weightbank.task import Task


def half_mean_square(output: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (output - y).square().sum(1).mean()


def linear_task(seed: int = 0) -> tuple[Task, Tensor]:
    """A linear regression at its optimum: the loss is exactly quadratic; its Hessian diagonal is E[x²]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(6, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return Task("line", model, half_mean_square, (x, y), (x, y)), x.square().mean(0)


def normal(task: Task, mean: Tensor, variance: Tensor) -> Gaussian:
    return Gaussian(task.layout, mean, variance, None)


def test_a_quadratic_loss_rises_by_what_is_expected() -> None:
    task, hessian = linear_task()
    theta = task.theta()
    law = normal(task, theta, torch.linspace(0.01, 0.3, 6, dtype=torch.float64))
    expected = expected_increase(hessian, law, theta=theta)
    measured = measured_increase(task, law, 1000, generator=torch.Generator().manual_seed(1))
    assert measured.stderr is not None
    assert abs(measured.mean - expected) < 4 * measured.stderr
    assert measured.stderr < 0.06 * expected


def test_bias_costs_as_variance_does() -> None:
    task, hessian = linear_task()
    theta = task.theta()
    shifted = theta.clone()
    shifted[2] += 0.7
    assert expected_increase(hessian, Point(shifted, task.layout)) == 0
    assert expected_increase(hessian, Point(shifted, task.layout), theta=theta) == pytest.approx(
        0.5 * float(hessian[2]) * 0.49
    )
    measured = measured_increase(task, Point(shifted, task.layout), 1)
    assert measured.mean == pytest.approx(0.5 * float(hessian[2]) * 0.49, rel=1e-9)


def test_independent_perturbations_add_up() -> None:
    task, hessian = linear_task()
    theta = task.theta()
    one = normal(task, theta + 0.1, torch.full((6,), 0.04, dtype=torch.float64))
    two = normal(task, theta - 0.3, torch.full((6,), 0.09, dtype=torch.float64))
    both = Together(theta, [one, two])
    torch.testing.assert_close(both.mean(), theta - 0.2)
    torch.testing.assert_close(displacement(both, theta=theta), torch.full((6,), 0.13 + 0.04, dtype=torch.float64))
    draws = both.sample(5_000, generator=torch.Generator().manual_seed(0))
    deviation = math.sqrt(0.13)
    assert float((draws.mean(0) - both.mean()).abs().max()) < 4.5 * deviation / math.sqrt(5_000)
    torch.testing.assert_close(
        draws.var(0), both.variance().double(), rtol=0.1, atol=0
    )  # 5 standard errors of a variance
    again = list(both.draws(3, generator=torch.Generator().manual_seed(0)))
    assert len(again) == 3
    assert expected_increase(hessian, both, theta=theta) == pytest.approx(0.5 * float(hessian.sum()) * 0.17)


def test_measuring_leaves_the_model_alone() -> None:
    task, _ = linear_task()
    before = task.theta()
    measured_increase(task, normal(task, before, torch.ones(6, dtype=torch.float64)), 2)
    assert torch.equal(task.theta(), before)


def test_other_weights_are_refused() -> None:
    task, hessian = linear_task()
    other = Point(torch.zeros(6), Layout.of(nn.Linear(5, 1)))
    with pytest.raises(LayoutError, match="other names or shapes"):
        measured_increase(task, other)
    with pytest.raises(LayoutError):
        expected_increase(hessian[:3], Point(task.theta(), task.layout))
    with pytest.raises(LayoutError, match="different weights"):
        Together(torch.zeros(6), [Point(task.theta(), task.layout), other])
    with pytest.raises(DataError):
        Together(torch.zeros(6), [])

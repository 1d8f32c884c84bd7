import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weightbank.budget import expected_increase, measured_increase
from weightbank.budget.along import increase_along
from weightbank.curvature import ggn
from weightbank.distributions import Gaussian, Point
from weightbank.errors import DataError, LayoutError
from weightbank.layout import Layout
from weightbank.task import Task


def small(model: nn.Module, seed: int = 0) -> Task:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (50,), generator=generator)
    return Task("small", model.double(), F.cross_entropy, (x, y), (x, y), batch_size=20)


def test_of_a_linear_model_it_is_the_taylor_series_with_the_true_hessian() -> None:
    """Outputs linear in θ: Gauss-Newton is the Hessian, here the Jacobian of the gradient."""
    task = small(nn.Linear(4, 3))
    x, y = task.train.x, task.train.y
    theta = task.theta()

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(task.predict(theta, x), y)

    delta = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slope, hessian = torch.func.grad(loss)(theta), torch.func.jacrev(torch.func.grad(loss))(theta)
    found = increase_along(task, Point(theta + delta, task.layout))
    assert found.n == 30
    assert found.mean == pytest.approx(float(slope @ delta + 0.5 * delta @ hessian @ delta), rel=1e-9)


def test_small_perturbations_of_any_kind_rise_as_said() -> None:
    """The rest is of third order: a tenth of the step leaves about a tenth of the relative error."""
    task = small(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    theta = task.theta()
    delta = torch.randn(len(theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slope = (
        sum(
            len(y) * torch.func.grad(lambda t, x=x, y=y: F.cross_entropy(task.predict(t, x), y))(theta)
            for x, y in task.batches()
        )
        / 50
    )
    flat = delta - slope * (slope @ delta) / (slope @ slope)  # along the level line, so that second order is all
    for law in (Point(theta + 1e-3 * delta, task.layout), Point(theta - 1e-3 * delta, task.layout)):
        assert increase_along(task, law, 1).mean == pytest.approx(measured_increase(task, law, 1).mean, rel=2e-2)
    assert increase_along(task, Point(theta + 1e-2 * flat, task.layout), 1).mean > 0


def test_independent_errors_cost_what_the_diagonal_says() -> None:
    task = small(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    theta, h = task.theta(), ggn(task)
    law = Gaussian(task.layout, theta.float(), torch.full((len(theta),), 1e-2), None)
    generator = torch.Generator().manual_seed(0)
    found = increase_along(task, law, 600, generator=generator)
    assert found.stderr is not None
    assert abs(found.mean - expected_increase(h.float(), law)) < 4 * found.stderr


def test_other_weights_are_refused() -> None:
    task = small(nn.Linear(4, 3))
    with pytest.raises(LayoutError, match="other names or shapes"):
        increase_along(task, Point(torch.zeros(6), Layout.of(nn.Linear(5, 1))))
    with pytest.raises(DataError, match="samples=0"):
        increase_along(task, Point(task.theta(), task.layout), 0)

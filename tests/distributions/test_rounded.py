from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightbank.distributions import Gaussian, Point, StreamedDistribution
from weightbank.distributions.packed import pack
from weightbank.distributions.rounded import Rounded, neighbours
from weightbank.errors import FormatError
from weightbank.evaluation import evaluate
from weightbank.formats import BlockFloatingPoint, ByDimensions, FixedPoint, MiniFloat, Native
from weightbank.layout import Layout
from weightbank.task import Task
from weightbank.zoo import mlp

LAYOUT = Layout.of(nn.Linear(40, 10))
THETA = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
FORMATS: list[Any] = [
    FixedPoint(6, 4), BlockFloatingPoint(4, block=ByDimensions()), MiniFloat(3, 2), "mxfp4_e2m1", Native("bfloat16"),
]  # fmt: skip


def gaussian(deviation: float) -> Gaussian:
    return Gaussian(LAYOUT, THETA, torch.full((LAYOUT.size,), deviation**2))


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_mean_and_variance_of_a_stochastically_rounded_point_are_those_of_its_draws(format: Any) -> None:
    law = Rounded(Point(THETA, LAYOUT), format, rounding="stochastic")
    draws = law.sample(500, generator=torch.Generator().manual_seed(1)).double()
    mean, variance = law.mean().double(), law.variance().double()
    assert float(variance.max()) > 0
    z = (draws.mean(0) - mean) / (variance / 500).sqrt().clamp(min=1e-7)
    assert float(z.abs().max()) < 5
    # a two-point law with f: the variance of its sample variance is v (1 - 4 v / Δ²) Δ² / n; in sum over all weights
    total, found = float(variance.sum()), float(draws.var(0).sum())
    assert found == pytest.approx(total, rel=0.02)


def test_fixed_point_variance_is_delta_squared_f_one_minus_f() -> None:
    x = torch.tensor([0.0, 1 / 64, 1 / 32, 3 / 64, 1 / 16, -1 / 64, 5.0, -5.0])
    layout = Layout.of(nn.Linear(8, 1, bias=False))
    law = Rounded(Point(x, layout), FixedPoint(6, 4), rounding="stochastic")
    step = 1 / 16
    f = torch.tensor([0, 1 / 4, 1 / 2, 3 / 4, 0, 3 / 4, 0, 0])
    assert torch.equal(law.variance(), step**2 * f * (1 - f))
    assert torch.equal(law.mean(), torch.cat([x[:6], torch.tensor([31 / 16, -2.0])]))  # the ends of the grid


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_neighbours_are_grid_points_next_to_each_other(format: Any) -> None:
    format = Rounded(Point(THETA, LAYOUT), format).format
    x = THETA[:400].view(10, 40)
    low, high = neighbours(format, x)
    nearest = format.quantize(x)
    assert ((low <= nearest) & (nearest <= high) & ((nearest == low) | (nearest == high))).all()
    inside = (low <= x) & (x <= high)
    assert inside.double().mean() > 0.9  # the others saturate
    assert ((nearest - x).abs() <= torch.minimum(x - low, high - x).abs() + 1e-9)[inside].all()


def test_nearest_rounding_of_a_point_is_a_point() -> None:
    law = Rounded(Point(THETA, LAYOUT), "bfp4")
    assert (law.variance() == 0).all()
    assert torch.equal(law.sample(2), pack(THETA, LAYOUT, "bfp4").sample(2))
    assert torch.equal(law.mean(), law.sample(1)[0])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_wide_gaussian_gets_the_variance_of_its_draws(rounding: Any) -> None:
    law = Rounded(gaussian(0.1), FixedPoint(8, 4), rounding=rounding)  # a step of 1/16
    draws = law.sample(500, generator=torch.Generator().manual_seed(0)).double()
    inner = 0.01 * LAYOUT.size
    added = {"nearest": 1 / 12, "stochastic": 1 / 6}[rounding] * LAYOUT.size / 256
    assert float(law.variance().sum()) == pytest.approx(inner + added, rel=0.02)
    assert float(draws.var(0).sum()) == pytest.approx(inner + added, rel=0.03)
    assert torch.equal(law.mean(), THETA)


def test_draws_are_rounded_draws_of_the_inner_law_and_stream(layout_of: Callable[[int], Layout]) -> None:
    law = Rounded(gaussian(0.1), FixedPoint(8, 4))
    assert isinstance(law, StreamedDistribution)
    inner = gaussian(0.1).sample(3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(law.sample(3, generator=torch.Generator().manual_seed(4)), FixedPoint(8, 4).quantize(inner))
    rows = [draw.clone() for draw in law.draws(3, generator=torch.Generator().manual_seed(4))]
    assert torch.equal(torch.stack(rows), law.sample(3, generator=torch.Generator().manual_seed(4)))


def test_stochastic_draws_depend_on_generator_and_seed_and_differ_from_each_other() -> None:
    def draw(seed: int, state: int) -> Tensor:
        law = Rounded(Point(THETA, LAYOUT), "bfp4", rounding="stochastic", seed=seed)
        return law.sample(2, generator=torch.Generator().manual_seed(state))

    assert torch.equal(draw(0, 0), draw(0, 0))
    assert not torch.equal(draw(0, 0), draw(1, 0))
    assert not torch.equal(draw(0, 0), draw(0, 1))
    assert not torch.equal(*draw(0, 0))


def test_evaluate_takes_it() -> None:
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    task = Task("t", mlp(8, 16, 3), F.cross_entropy, (x, y), (x, y))
    law = Rounded(Point(task.theta(), task.layout), "BlockFloatingPoint(3)", rounding="stochastic")
    found = evaluate(task, law, samples=6)
    assert found.samples == 6
    assert len(set(found.draws["nll"].values)) == 6


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(FormatError, match="bfp99"):
        Rounded(Point(THETA, LAYOUT), "bfp99")

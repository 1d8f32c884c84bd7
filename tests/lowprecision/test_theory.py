"""Linear regression x ~ N(0, I), y = x.w* + N(0, 1/16), one example a step, constant rate; only weights are rounded.

With A = E[x x'] = I and |alpha g| below the step delta of the grid, stochastic rounding and gradient together have the
variance delta alpha E|g_j| in each coordinate, and E|g_j| = (2 / pi) sqrt(1/16 + P) up to the dependence of x and
residual, P the squared distance of the iterates from w*. So low-precision SGD stays at P = (delta / 2) sum_j E|g_j|,
whatever alpha, and the average of T iterates is at (delta / (alpha T)) sum_j E|g_j| and falls on.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from weightbank.distributions import Moments
from weightbank.formats import FixedPoint
from weightbank.layout import Layout
from weightbank.lowprecision import Precision

D, REPLICAS, NOISE = 16, 256, 0.25


def plateau(delta: float) -> float:
    """The positive root of P = (delta / 2) D (2 / pi) sqrt(NOISE² + P)."""
    slope = (delta / 2 * D * 2 / math.pi) ** 2
    return slope / 2 + math.sqrt(slope * slope / 4 + slope * NOISE**2)


def run(format: FixedPoint, optimum: Tensor, rate: float, steps: int, looks: tuple[int, ...]) -> tuple[float, Tensor]:
    """Mean squared distance of the iterates, and that of the averages after `looks` steps, of all replicas."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.weight = nn.Parameter(optimum.expand(REPLICAS, -1).clone())
    average = Moments(Layout.of(model), variance=False)
    iterates, averages = [], []
    with Precision(weights=format, accumulator=format).attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=rate))
        burn_in = round(4 / rate)
        for step in range(burn_in + steps):
            x = torch.randn(REPLICAS, D, generator=generator)
            noise = NOISE * torch.randn(REPLICAS, generator=generator)
            off = model.weight.detach() - optimum
            model.weight.grad = ((x * off).sum(1) + noise)[:, None] * x
            optimizer.step()
            if step < burn_in:
                continue
            iterates.append(float(off.square().sum(1).mean()))
            average.update(model.weight.detach().view(-1))
            if average.count in looks:
                averages.append((average.mean().view(REPLICAS, D) - optimum).square().sum(1))
    return sum(iterates) / len(iterates), torch.stack(averages)


@pytest.mark.parametrize("rate", [2.0**-6, pytest.param(2.0**-7, marks=pytest.mark.slow)])
def test_iterates_stay_at_the_predicted_plateau_whatever_the_rate_and_averages_fall_below(rate: float) -> None:
    delta = 2.0**-6
    optimum = torch.rand(D, generator=torch.Generator().manual_seed(1)) * 2 - 1
    steps = round(16 / rate)
    iterate, averages = run(FixedPoint(8, 6), optimum, rate, steps, (steps // 4, steps))
    assert iterate == pytest.approx(plateau(delta), rel=0.15)
    # (1 - 2 (1 - e^-s) / s) of the limit for s = alpha T, which leaves the start (s = 4) or almost none (s = 16)
    early, late = (float(distance.mean()) for distance in averages)
    for found, s in ((early, 4.0), (late, 16.0)):
        limit = 2 * plateau(delta) / s
        assert found == pytest.approx(limit * (1 - (1 - math.exp(-s)) / s), rel=0.15)


def test_the_average_ends_closer_to_the_optimum_than_any_point_of_the_grid() -> None:
    """The optimum lies in the middle between grid points in every coordinate; nothing representable is nearer."""
    delta, rate, steps = 2.0**-4, 2.0**-5, 1_500
    whole = torch.randint(-16, 16, (D,), generator=torch.Generator().manual_seed(2))
    optimum = (whole + 0.5) * delta
    best = D * (delta / 2) ** 2
    assert float((FixedPoint(6, 4).quantize(optimum) - optimum).square().sum()) == best
    iterate, (average,) = run(FixedPoint(6, 4), optimum, rate, steps, (steps,))
    assert iterate == pytest.approx(plateau(delta), rel=0.15)
    assert iterate > 5 * best
    assert float(average.mean()) < 0.6 * best
    assert float((average < best).double().mean()) > 0.9

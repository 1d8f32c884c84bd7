import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from weightbank.evaluation.metrics import nll
from weightbank.evaluation.temperature import COLDEST, HOTTEST, calibrated_nll, fit_temperature


def honest(n: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities that the labels were really drawn from."""
    generator = torch.Generator().manual_seed(5)
    log_p = (2 * torch.randn(n, 4, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return log_p, torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_fit_is_scipys_minimum(true):
    log_p, y = honest(500)
    log_p = (true * log_p).log_softmax(-1)
    wanted = minimize_scalar(
        lambda log_t: nll((log_p / math.exp(log_t)).log_softmax(-1), y).mean,
        bounds=(-4, 4),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # A minimum located by values is known to the square root of double precision only.
    assert fit_temperature(log_p, y) == pytest.approx(math.exp(wanted.x), rel=1e-6)


def test_over_confidence_is_undone():
    log_p, y = honest()
    sharp = (3 * log_p).log_softmax(-1)
    repaired, temperature = calibrated_nll(sharp, y)
    assert temperature.mean == pytest.approx(3.0, rel=0.1)
    assert len(temperature.values) == 2
    plain = nll(log_p, y)
    assert repaired.mean == pytest.approx(plain.mean, abs=plain.stderr)
    assert nll(sharp, y).mean > plain.mean + 10 * plain.stderr


def test_each_half_is_scored_at_the_other_halfs_temperature():
    log_p, y = honest(301)
    order = torch.randperm(301, generator=torch.Generator().manual_seed(0))
    a, b = order[:150], order[150:]
    total = 0.0
    for fit, score in ((a, b), (b, a)):
        t = fit_temperature(log_p[fit], y[fit])
        total += nll((log_p[score] / t).log_softmax(-1), y[score]).mean * len(score)
    repaired, _ = calibrated_nll(log_p, y)
    assert repaired.mean == pytest.approx(total / 301, rel=1e-12)
    assert repaired.n == 301


def test_own_labels_would_flatter():
    # The labels say nothing: fitted on themselves the NLL is at most that of the cross-fit.
    log_p, _ = honest(40)
    y = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(0))
    own = nll((log_p / fit_temperature(log_p, y)).log_softmax(-1), y).mean
    assert calibrated_nll(log_p, y)[0].mean > own


def test_always_right_is_sharpened_to_the_end_and_always_wrong_flattened():
    log_p, _ = honest(100)
    assert fit_temperature(log_p, log_p.argmax(-1)) == COLDEST
    assert fit_temperature(log_p, log_p.argmin(-1)) == HOTTEST


def test_zero_probabilities_keep_the_fit_finite():
    log_p = torch.tensor([[0.0, -math.inf], [0.0, -math.inf], [-math.inf, 0.0], [0.0, -math.inf]])
    repaired, temperature = calibrated_nll(log_p, torch.tensor([0, 0, 1, 1]))
    assert math.isfinite(repaired.mean)
    assert math.isfinite(temperature.mean)


def test_one_example_cannot_be_halved():
    with pytest.raises(ValueError, match="at least 2"):
        calibrated_nll(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))

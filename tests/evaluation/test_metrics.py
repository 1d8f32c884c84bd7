import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from weightbank.evaluation.metrics import (
    BLOCK,
    LOG_SMALLEST,
    accuracy,
    brier,
    entropy,
    expected_calibration_error,
    nll,
)


def predictions(n: int = 400, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return logits.log_softmax(-1), labels


def test_accuracy_nll_and_brier_are_sklearns():
    log_p, y = predictions()
    p = log_p.exp().numpy()
    assert accuracy(log_p, y).mean == accuracy_score(y.numpy(), p.argmax(-1))
    assert nll(log_p, y).mean == pytest.approx(log_loss(y.numpy(), p, labels=range(5)), rel=1e-12)
    wanted = brier_score_loss(y.numpy(), p, labels=list(range(5)), scale_by_half=False)
    assert brier(log_p, y).mean == pytest.approx(wanted, rel=1e-12)


def test_standard_errors_are_those_of_a_mean_over_examples():
    log_p, y = predictions()
    hit = (log_p.argmax(-1) == y).double().numpy()
    assert accuracy(log_p, y).stderr == pytest.approx(hit.std() / math.sqrt(400), rel=1e-12)
    assert nll(log_p, y).stderr == pytest.approx(stats.sem(-log_p[torch.arange(400), y].numpy()), rel=1e-12)
    scores = ((log_p.exp() - torch.eye(5)[y]) ** 2).sum(-1)
    assert brier(log_p, y).stderr == pytest.approx(stats.sem(scores.numpy()), rel=1e-12)


def test_more_examples_than_a_block_change_nothing():
    log_p, y = predictions(50)
    times = BLOCK // 50 + 1
    assert brier(log_p.repeat(times, 1), y.repeat(times)).mean == pytest.approx(brier(log_p, y).mean, rel=1e-12)
    assert torch.equal(entropy(log_p.exp().repeat(times, 1)), entropy(log_p.exp()).repeat(times))


def test_impossible_label_costs_the_floor_and_not_infinity():
    log_p = torch.tensor([[0.0, -math.inf], [-2000.0, 0.0]])
    labels = torch.tensor([1, 0])
    assert nll(log_p, labels).mean == pytest.approx(-LOG_SMALLEST, rel=1e-12)
    assert pytest.approx(744.44, abs=0.001) == -LOG_SMALLEST
    assert brier(log_p, labels).mean == 2.0


def test_calibration_error_of_four_examples_by_hand():
    # Confidences .95 and .85 share no bin of ten; .62 and .68 do: |.5 - .65| * 2/4 + |1 - .95| / 4 + |0 - .85| / 4.
    p = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.62, 0.38], [0.32, 0.68]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 0])
    error = expected_calibration_error(p.log(), labels, bins=10)
    assert error.mean == pytest.approx(0.5 * 0.15 + 0.05 / 4 + 0.85 / 4, abs=1e-12)


def test_certain_predictions_share_the_last_bin():
    # One bin of confidence near 1: right half the time, so the gap is |1/2 - (1 + .97) / 2|.
    p = torch.tensor([[1.0, 0.0], [0.97, 0.03]], dtype=torch.float64)
    error = expected_calibration_error(p.log(), torch.tensor([0, 1]), bins=15)
    assert error.mean == pytest.approx(abs(0.5 - 1.97 / 2), abs=1e-12)


def test_a_probability_a_rounding_error_above_one_is_no_logit():
    log_p = torch.tensor([[1e-12, -30.0], [-0.5, math.log(1 - math.exp(-0.5))]], dtype=torch.float64)
    error = expected_calibration_error(log_p, torch.tensor([0, 0]))
    assert error.mean == pytest.approx((1 - math.exp(-0.5)) / 2, abs=1e-9)


def test_calibration_error_is_the_slow_double_loop():
    log_p, y = predictions(1000)
    p = log_p.exp().numpy()
    confidence, hit = p.max(-1), p.argmax(-1) == y.numpy()
    slow = 0.0
    for b in range(15):
        inside = (confidence >= b / 15) & (confidence < (b + 1) / 15)
        if inside.any():
            slow += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(log_p, y).mean == pytest.approx(slow, abs=1e-12)


def test_calibration_standard_error_is_near_the_bootstrap():
    # An over-confident model, so that the gaps have settled signs, where the delta method holds.
    log_p, y = predictions(1000)
    sharp = (3 * log_p).log_softmax(-1)
    generator = torch.Generator().manual_seed(0)
    boot = []
    for _ in range(200):
        chosen = torch.randint(0, 1000, (1000,), generator=generator)
        boot.append(expected_calibration_error(sharp[chosen], y[chosen]).mean)
    # 200 resamples know their spread to 1/sqrt(400) = 5 %; 20 % is four of those.
    assert expected_calibration_error(sharp, y).stderr == pytest.approx(np.std(boot), rel=0.2)


def test_entropy_of_certain_and_uniform():
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert torch.allclose(entropy(p), torch.tensor([0.0, math.log(4)], dtype=torch.float64), atol=1e-15)

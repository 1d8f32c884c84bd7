import torch

from weightbank.evaluation.metrics import BLOCK
from weightbank.evaluation.running import RunningPrediction


def test_mean_and_variance_are_those_of_all_draws_stored():
    draws = torch.rand(7, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    running = RunningPrediction()
    for draw in draws:
        running.add(draw)
    assert torch.allclose(running.mean, draws.mean(0), rtol=1e-14)
    assert torch.allclose(running.variance, draws.var(0), rtol=1e-13)


def test_a_variance_far_below_the_squared_mean_survives():
    # Spread 1e-9 around 1: the difference of E[p²] and E[p]², 1e-18, is lost in double precision (2e-16).
    draws = 1 + 1e-9 * torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    running = RunningPrediction()
    for draw in draws:
        running.add(draw)
    assert torch.allclose(running.variance, draws.var(0), rtol=1e-5)


def test_rows_beyond_one_block_count_too():
    draws = torch.rand(3, BLOCK + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    running = RunningPrediction()
    for draw in draws:
        running.add(draw)
    assert torch.allclose(running.variance, draws.var(0), rtol=1e-12)


def test_the_caller_may_overwrite_what_was_counted():
    prediction = torch.ones(2, dtype=torch.float64)
    running = RunningPrediction()
    running.add(prediction)
    prediction.zero_()
    assert torch.equal(running.mean, torch.ones(2, dtype=torch.float64))
    assert torch.equal(running.variance, torch.zeros(2, dtype=torch.float64))

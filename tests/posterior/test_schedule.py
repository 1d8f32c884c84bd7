import pytest
import torch

from weightbank.errors import DataError
from weightbank.posterior.schedule import swag_schedule


def published(epoch: int, start: int, first: float, last: float) -> float:
    """The schedule of Maddox et al.'s training script, written out."""
    t = epoch / start
    ratio = last / first
    if t <= 0.5:
        return first
    if t <= 0.9:
        return first * (1.0 - (1.0 - ratio) * (t - 0.5) / 0.4)
    return first * ratio


def test_rates_are_the_published_ones() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = swag_schedule(optimizer, start=20, lr=0.03)
    for epoch in range(30):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(published(epoch, 20, 0.1, 0.03), rel=1e-12)
        optimizer.step()
        schedule.step()


def test_the_rate_is_reached_before_recording_starts() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = swag_schedule(optimizer, start=10, lr=0.02)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02, rel=1e-12)


@pytest.mark.parametrize(("start", "lr"), [(0, 0.1), (5, 0.0), (5, -1.0)])
def test_a_rate_or_start_that_cannot_be_is_refused(start: int, lr: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(DataError, match="positive rates"):
        swag_schedule(optimizer, start=start, lr=lr)

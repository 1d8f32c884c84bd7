from itertools import pairwise

import pytest
import torch
from torch import nn

from weightbank.errors import DataError
from weightbank.lowprecision import constant_schedule, published_schedule


def test_published_vgg_rates_epoch_by_epoch() -> None:
    """lr .05, average from 200, average lr .01: .05 to epoch 100, down to .0005 at 180, and the jump up to .01."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.05)
    schedule = published_schedule(0.05, start=200, average_lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    rates = []
    for _ in range(300):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:101] == [0.05] * 101
    assert rates[140] == pytest.approx(0.05 * (1 - 0.99 / 2))
    assert rates[180:200] == pytest.approx([0.0005] * 20)
    assert rates[200:] == pytest.approx([0.01] * 100)
    assert all(later <= earlier for earlier, later in pairwise(rates[:200]))


def test_constant_schedule_changes_once() -> None:
    schedule = constant_schedule(0.1, start=3, average_lr=0.05)
    assert [schedule(epoch) for epoch in range(5)] == [1.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("change", [{"start": 0}, {"lr": 0.0}, {"average_lr": -1.0}])
def test_rates_out_of_range_are_refused(change: dict[str, float]) -> None:
    lr = change.pop("lr", 0.1)
    with pytest.raises(DataError, match="positive rates"):
        published_schedule(lr, **{"start": 10, "average_lr": 0.1, **change})  # type: ignore[arg-type]

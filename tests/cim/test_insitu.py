from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from weightbank.cim import Cells, Device, WriteVerify, each_chip, retrain_in_situ
from weightbank.distributions import Point
from weightbank.errors import DataError, DivergedError


def test_without_steps_it_is_a_chip_written_once(trained):
    device = Device(6, 2, sigma=0.3, quantized=True)
    cells = Cells.of(trained, device)
    found = retrain_in_situ(trained, cells, steps=0, learning_rate=0.1, generator=torch.Generator().manual_seed(1))
    assert found.ledger.effort.extra == 0
    levels = torch.stack(list(cells.levels()))
    sign = torch.where(cells.theta < 0, -1.0, 1.0)
    value = torch.tensor(device.places) @ (sign * levels + found.ledger.errors)
    expected = torch.where(cells.on_device, value * cells.scale, cells.theta)
    torch.testing.assert_close(found.theta, expected)
    assert float(found.ledger.errors[:, cells.on_device].std()) == pytest.approx(0.3, rel=0.1)


def test_on_exact_cells_it_is_gradient_descent_on_the_grid(trained):
    """Weights stay within half a step of plain SGD whose gradient is taken on the grid; clipped at the scale."""
    device = Device(12, 3, sigma=0.0, verified_sigma=0.0)
    cells = Cells.of(trained, device)
    seen = []
    trained.train.generator.manual_seed(0)
    found = retrain_in_situ(
        trained, cells, steps=3, learning_rate=0.05, momentum=0.5, each_step=lambda step, theta, _: seen.append(theta)
    )
    trained.train.generator.manual_seed(0)
    wanted, speed, theta = cells.theta, 0.0, Cells.of(trained, device).theta
    grid = cells.scale / 2**12
    theta = torch.where(grid > 0, (theta / grid).round().clamp(-(2**12) + 1, 2**12 - 1) * grid, theta)
    for (x, y), after in zip(trained.batches("train"), seen, strict=False):
        free = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(trained.predict(free, x), y), free)
        speed = 0.5 * speed + gradient
        wanted = wanted - 0.05 * speed
        theta = torch.where(grid > 0, (wanted / grid).round().clamp(-(2**12) + 1, 2**12 - 1) * grid, wanted)
        torch.testing.assert_close(after, theta, atol=2e-5, rtol=1e-5)
    assert torch.equal(found.theta, seen[-1])
    trained.train.generator.manual_seed(0)


def test_only_changed_cells_are_written_and_redrawn(trained):
    cells = Cells.of(trained, Device(6, 2, sigma=0.3))
    books = []
    retrain_in_situ(trained, cells, steps=8, learning_rate=0.05, each_step=lambda *now: books.append(now[2]))
    for before, after in pairwise(books):
        written = after.pulses > before.pulses
        assert (after.pulses - before.pulses).max() == 1
        assert torch.equal(after.errors[~written], before.errors[~written])
        assert (after.errors[written] != before.errors[written]).all()
        assert not written[:, ~cells.on_device].any()
    # Low cells change far more often than high ones.
    extra = (books[-1].pulses - 1).sum(1)
    assert extra[-1] > 3 * extra[0]


def test_retraining_repairs_a_chip_and_counts_what_it_took(trained):
    device = Device(8, 1, sigma=0.5)
    cells = Cells.of(trained, device)
    before, after, effort = [], [], []
    for seed in range(3):
        for steps, found in ((0, before), (60, after)):
            generator = torch.Generator().manual_seed(seed)
            chip = retrain_in_situ(trained, cells, steps=steps, learning_rate=0.03, generator=generator)
            found.append(each_chip(trained, Point(chip.theta, trained.layout), 1).mean)
        effort.append(chip.ledger.effort)
    assert sum(after) / 3 > sum(before) / 3 + 0.03
    full = WriteVerify().outcome(0.5).effort(effort[0].cells)
    assert 0 < effort[0].write_cycles(full) < 5


def test_bad_requests_are_refused(trained):
    cells = Cells.of(trained, Device(pairs=True))
    with pytest.raises(DataError, match="plain errors"):
        retrain_in_situ(trained, cells, steps=1, learning_rate=0.1)
    with pytest.raises(DataError, match="learning_rate=0"):
        retrain_in_situ(trained, Cells.of(trained, Device()), steps=1, learning_rate=0.0)
    with pytest.raises(DivergedError, match="learning rate"):
        retrain_in_situ(trained, Cells.of(trained, Device()), steps=30, learning_rate=1e30)

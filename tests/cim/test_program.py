import math
import subprocess
import sys
from statistics import NormalDist

import pytest
import torch

from weightbank.cim import Device, Drift, Table, program
from weightbank.errors import LayoutError
from weightbank.evaluation import evaluate
from weightbank.layout import Entry, Layout
from weightbank.task import Task

CHIPS = 10_000
DEVICES = {
    "plain": Device(sigma=0.3),
    "two bits": Device(7, 2, sigma=0.3),
    "channel": Device(sigma=0.3, scale="channel"),
    "pairs": Device(sigma=0.3, pairs=True, quantized=True),
    "fit": Device(6, 2, sigma="pcm_joshi", verified_sigma=0.01),
    "fit, pairs": Device(6, 2, sigma="rram_wan", verified_sigma="pcm_aihwkit", pairs=True),
    "table": Device(4, 2, sigma=Table((0.0, 1.0), (0.05, -0.2), (0.02, 0.1)), verified_sigma=0.01),
    "function": Device(4, 1, sigma=lambda g: 0.1 + 0.2 * g, verified_sigma=0.01),
    "stuck": Device(4, 2, sigma=0.3, stuck_low=0.05, stuck_high=0.1),
    "stuck, pairs": Device(4, 2, sigma=0.3, stuck_low=0.05, stuck_high=0.1, pairs=True, quantized=True),
    "read": Device(sigma=0.1, read_noise=0.3, pairs=True),
    "drift": Device(sigma=0.1, drift=Drift(10_000, exponent=0.05)),
    "drifts": Device(4, 2, sigma=0.1, drift=Drift(10_000, exponent=0.1, spread=0.1, compensated=True)),
    "phase change": Device(4, 2, sigma="pcm_aihwkit", pairs=True, drift=Drift(86_400, exponent="pcm_aihwkit")),
    "all": Device(
        6, 3, sigma="pcm_joshi", verified_sigma=0.1, pairs=True, stuck_high=0.02, read_noise=0.2, quantized=True,
        drift=Drift(10_000, exponent=0.1, spread=0.05, compensated=True),
    ),
}  # fmt: skip


def agree(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Rows of draws have these moments, to 4.5 standard errors of each (39 weights, 45 cases: false alarm 2 %)."""
    x = x.double() - mean.double()
    assert (x.mean(0).abs() < 4.5 * x.std(0) / math.sqrt(len(x))).all()
    assert ((x.square().mean(0) - variance).abs() < 4.5 * x.square().std(0) / math.sqrt(len(x))).all()


def test_moments_of_10000_chips_are_mean_and_variance(layout, theta):
    mask = torch.rand(8, layout.size, generator=torch.Generator().manual_seed(3)) < 0.4
    chip = program(layout, DEVICES["plain"], mask, theta=theta)
    analog = chip.device.on_device(layout)
    x = chip.sample(CHIPS, generator=torch.Generator().manual_seed(4))
    assert (x[:, ~analog] == theta[~analog]).all()
    agree(x[:, analog], theta[analog], chip.variance()[analog])


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("verified", ["none", "weights", "cells"])
def test_moments_of_every_device_are_those_of_10000_draws(name, verified):
    """50 equal rows of 39 weights on 200 chips."""
    device, generator = DEVICES[name], torch.Generator().manual_seed(3)
    row = torch.randn(39, generator=generator)
    row[3] = 0.0
    layout = Layout((Entry("w", (50, 39), 0, torch.float32),))
    mask = None
    if verified != "none":
        mask = torch.rand((39,) if verified == "weights" else (device.cells, 39), generator=generator) < 0.4
        mask = mask.repeat(50) if verified == "weights" else mask.repeat(1, 50)
    chip = program(layout, device, mask, theta=row.repeat(50))
    x = chip.sample(CHIPS // 50, generator=generator).view(-1, 39)
    assert float(chip.variance().min()) > 0
    agree(x, chip.mean()[:39], chip.variance()[:39])


def test_error_rate_of_one_neuron_is_the_normal_tail():
    # w'x with noise N(0, (sigma scale kappa)²) on each weight falls below zero with Phi(-margin / (s |x|)).
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    w += x * (2.0 - float(w @ x)) / float(x @ x)
    layout = Layout((Entry("w", (1, 50), 0, torch.float32),))
    device = Device(sigma=0.3)
    chip = program(layout, device, theta=w)
    spread = 0.3 * float(w.abs().max()) * math.sqrt(sum(4.0**-i for i in range(1, 9)))
    p = NormalDist().cdf(-float(w @ x) / (spread * float(x.norm())))
    assert 0.02 < p < 0.4
    wrong = float((chip.sample(CHIPS, generator=generator) @ x < 0).double().mean())
    assert abs(wrong - p) < 4 * math.sqrt(p * (1 - p) / CHIPS)


@pytest.mark.parametrize("name", ["plain", "stuck", "drifts"])
def test_differently_verified_chips_differ_only_where_verified(name, layout, theta):
    device = DEVICES[name]
    mask = torch.rand(layout.size, generator=torch.Generator().manual_seed(0)) < 0.5
    a, b = program(layout, device, theta=theta), program(layout, device, mask, theta=theta)
    x, y = (chip.sample(4, generator=torch.Generator().manual_seed(9)) for chip in (a, b))
    assert torch.equal(x[:, ~mask], y[:, ~mask])
    assert not torch.equal(x[:, mask], y[:, mask])


def test_equally_seeded_chips_have_the_same_normals(layout, theta):
    mask = torch.rand(8, layout.size, generator=torch.Generator().manual_seed(0)) < 0.5
    chips = [program(layout, Device(sigma=0.3), verified, theta=theta) for verified in (None, mask)]
    x, y = (
        ((chip.sample(1, generator=torch.Generator().manual_seed(9))[0] - theta) / chip.variance().sqrt())[:24]
        for chip in chips
    )
    torch.testing.assert_close(x, y, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_draws_are_the_rows_of_sample_and_do_not_depend_on_their_number(name, layout, theta):
    chip = program(layout, DEVICES[name], theta=theta)
    rows = chip.sample(3, generator=torch.Generator().manual_seed(4))
    for row, draw in zip(rows, chip.draws(2, generator=torch.Generator().manual_seed(4)), strict=False):
        assert torch.equal(row, draw)


def test_a_chip_at_rest_and_its_reading_add_up(layout, theta):
    chip = program(layout, DEVICES["read"], theta=theta)
    rest, reading = chip.at_rest()
    torch.testing.assert_close(rest.variance() + reading.square(), chip.variance())
    assert program(layout, DEVICES["plain"], theta=theta).at_rest()[1] is None


def test_a_mask_of_another_shape_is_refused(trained):
    with pytest.raises(LayoutError, match=r"\(3,\); wanted \(224,\) or \(8, 224\)"):
        program(trained, Device(), torch.ones(3, dtype=torch.bool))


def test_a_task_is_programmed_with_its_present_weights(trained):
    assert torch.equal(program(trained, Device()).mean(), trained.theta())


UNTYPED = """
import torch, weightbank as wb
from weightbank.errors import DataError, LayoutError
task = wb.Task("t", torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, [], [])
scores = torch.rand(8)
for error, words, wrong in (
    (LayoutError, "wanted a mask", lambda: wb.program(task, wb.Device(), wb.rank(scores))),
    (LayoutError, "wanted a mask", lambda: wb.program(task, wb.Device(), scores)),
    (LayoutError, "torch.bool came", lambda: wb.write_verify(task, wb.Device(), scores > 0.5)),
    (LayoutError, r"shape (2, 4) came", lambda: wb.rank(scores.view(2, 4))),
    (DataError, "wanted whole numbers", lambda: wb.Device(weight_bits=8.5)),
):
    try:
        wrong()
    except error as found:
        assert words in str(found), found
    else:
        raise AssertionError(words)
"""


def test_what_a_type_checker_would_find_is_told_without_one():
    """In a process of its own, since here annotations are checked at run time."""
    found = subprocess.run([sys.executable, "-c", UNTYPED], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_a_chip_keeps_the_batch_norm_statistics_it_was_given():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=generator) + 2, torch.arange(64) % 3
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    task = Task("toy", model, torch.nn.functional.cross_entropy, (x, y), (x, y))
    chip = program(task, Device(sigma=0.3))
    kept = evaluate(task, chip, samples=5, batch_norm="keep")
    assert evaluate(task, chip, samples=5).nll == kept.nll
    assert evaluate(task, chip, samples=5, batch_norm="refresh").nll != kept.nll
    assert evaluate(task, task.theta()).nll == evaluate(task, task.theta(), batch_norm="refresh").nll != kept.nll

import math

import pytest
import torch

from weightbank.cim import Cells, Chip, Device, Rule, WriteVerify, Written
from weightbank.cim.compensate import compensated
from weightbank.layout import Entry, Layout


def laid_out(device: Device, weights: torch.Tensor) -> Cells:
    return Cells.of(Layout((Entry("w", (1, len(weights)), 0, torch.float32),)), device, weights)


def unread(cells: Cells) -> Rule:
    return Rule(torch.zeros(cells.layout.size, dtype=torch.uint8), (math.inf,), (0.06,))


WEIGHTS = torch.cat(
    [torch.randn(2000, generator=torch.Generator().manual_seed(0)).mul(0.3).clamp(-1, 1), torch.ones(1)]
)


@pytest.mark.parametrize("device", [Device(6, 1, sigma=0.3), Device(6, 2, sigma=0.3, pairs=True, quantized=True)])
def test_later_cells_are_chosen_by_what_earlier_ones_read(device):
    """A loop over weights and cells in plain Python, fed with the errors in the books, gives the same weights."""
    cells = laid_out(device, WEIGHTS[-40:])
    found = compensated(cells, WriteVerify(), unread(cells), torch.arange(40), seed=5, number=2)
    errors = {(row, side): part.errors for row, side, part in found.books}
    for p in range(40):
        rest, actual = float(cells.target()[p]), 0.0
        for row, place in enumerate(device.places):
            level = rest / place
            if row < device.cells - 1:
                level = round(level) if device.pairs else math.floor(level)
            elif device.quantized:
                level = round(level)
            level = max(-device.top if device.pairs else 0, min(device.top, level))
            got = level + float(errors[row, 0][p]) - (float(errors[row, 1][p]) if device.pairs else 0.0)
            actual += place * got
            rest -= place * got
        assert float(found.weights[p]) == pytest.approx(float(cells.signed_scale[p]) * actual, abs=2e-5)


@pytest.mark.parametrize(("pairs", "factor"), [(False, 2.5), (True, 20)])
def test_compensation_shrinks_errors_without_a_pulse(pairs, factor):
    """Half of the errors of cells that can only add are out of reach; pairs can take up nearly all."""
    cells = laid_out(Device(sigma=0.3, pairs=pairs), WEIGHTS)
    rule = unread(cells)
    law = Written(cells, WriteVerify(), rule, cells.on_device)
    plain = Written(cells, WriteVerify(), rule)
    assert law.effort.pulses == plain.effort.pulses == law.effort.cells
    assert law.effort.reads == 2001 * 7 * cells.device.sides
    assert law.counted(1, generator=torch.Generator().manual_seed(0)).reads == law.effort.reads
    error = law.sample(20, generator=torch.Generator().manual_seed(0)) - cells.theta
    assert float(error.square().mean()) * factor < float(Chip(cells).variance().mean())


def test_moments_are_those_of_other_chips():
    cells = laid_out(Device(6, 2, sigma=0.3, read_noise=0.1), WEIGHTS[-100:])
    absorb = torch.arange(100) % 2 == 0
    law = Written(cells, WriteVerify(read_noise=0.05), unread(cells), absorb)
    x = law.sample(2000, generator=torch.Generator().manual_seed(1)).double()
    # The law's own moments come from 256 chips: relative error of a variance √(2/256) = 9 %, four times that, and of
    # their mean over 50 weights less.
    assert float(((x.var(0) - law.variance()).abs() / law.variance())[absorb].max()) < 0.5
    assert float((x.var(0)[absorb] / law.variance()[absorb]).mean()) == pytest.approx(1, abs=0.05)
    assert float(((x.mean(0) - law.mean()).abs() / law.variance().sqrt()).max()) < 4.5 / math.sqrt(256) * 1.1


def test_verified_cells_are_compensated_for_what_is_left():
    cells = laid_out(Device(sigma=0.3), WEIGHTS)
    verified = Rule.of(torch.tensor([[True]] + [[False]] * 7).expand(8, 2001), WriteVerify())
    both = Written(cells, WriteVerify(), verified, cells.on_device)
    alone = Written(cells, WriteVerify(), verified)
    error = both.sample(20, generator=torch.Generator().manual_seed(0)) - cells.theta
    assert float(error.square().mean()) < 0.5 * float(alone.variance().mean())
    assert both.effort.pulses == alone.effort.pulses

import math
from dataclasses import replace

import pytest
import torch

from weightbank.cim import Cells, Device, Drift, Rule, WriteVerify, Written
from weightbank.errors import DataError, LayoutError
from weightbank.layout import Entry, Layout

DEVICES = {
    "plain": Device(4, 1, sigma=0.3),
    "two bits, quantized, read": Device(6, 2, sigma=0.3, quantized=True, read_noise=0.1),
    "pairs": Device(4, 2, sigma=0.3, pairs=True),
    "stuck": Device(4, 2, sigma=0.3, stuck_low=0.05, stuck_high=0.05),
    "drift": Device(4, 2, sigma=0.3, pairs=True, drift=Drift(1000, spread=0.05, compensated=True)),
}
PROCESS = WriteVerify(read_noise=0.02, max_pulses=40)


def laid_out(device: Device, copies: int = 50) -> tuple[Cells, Rule]:
    """39 weights, each `copies` times, and a random rule of three grades for their cells, equal for all copies."""
    generator = torch.Generator().manual_seed(3)
    row = torch.randn(39, generator=generator)
    layout = Layout((Entry("w", (copies, 39), 0, torch.float32),))
    grades = torch.randint(0, 3, (device.cells, 39), generator=generator, dtype=torch.uint8).repeat(1, copies)
    return Cells.of(layout, device, row.repeat(copies)), Rule(grades, (math.inf, 0.1, 0.3), (0.06, 0.1, 0.05))


@pytest.mark.parametrize("name", DEVICES)
def test_moments_are_those_of_simulated_chips(name):
    cells, rule = laid_out(DEVICES[name])
    law = Written(cells, PROCESS, rule)
    x = law.sample(40, generator=torch.Generator().manual_seed(1)).view(-1, 39).double() - law.mean()[:39].double()
    # 2,000 draws of 39 weights; 4.5 standard errors
    assert (x.mean(0).abs() < 4.5 * x.std(0) / math.sqrt(len(x))).all()
    assert ((x.square().mean(0) - law.variance()[:39]).abs() < 4.5 * x.square().std(0) / math.sqrt(len(x))).all()


@pytest.mark.parametrize("name", ["plain", "pairs", "drift"])
def test_expected_effort_is_what_is_counted(name):
    cells, rule = laid_out(DEVICES[name])
    law = Written(cells, PROCESS, rule)
    counted = law.counted(10, generator=torch.Generator().manual_seed(1))
    assert counted.cells == law.effort.cells == 39 * 50 * cells.device.cells * cells.device.sides
    assert counted.pulses == pytest.approx(law.effort.pulses, rel=0.02)  # 78,000 cells, std of about 6 pulses
    assert counted.reads == pytest.approx(law.effort.reads, rel=0.02)


@pytest.mark.parametrize("name", ["plain", "pairs"])
def test_books_explain_the_weights(name):
    cells, rule = laid_out(DEVICES[name])
    theta, ledger = Written(cells, PROCESS, rule).write(generator=torch.Generator().manual_seed(1))
    errors = ledger.errors[0] - ledger.errors[1] if name == "pairs" else ledger.errors
    value = torch.tensor(cells.device.places) @ errors
    torch.testing.assert_close(theta, cells.theta + cells.signed_scale * value, atol=1e-6, rtol=1e-5)
    unread = (rule.grades == 0).expand_as(ledger.reads)
    assert (ledger.reads[unread] == 0).all()
    assert (ledger.pulses[unread] == 1).all()
    assert (ledger.reads[~unread] >= 1).all()


def test_the_books_leave_out_digital_weights():
    """What a chip counts compares with verifying everything, whatever is digital: here half of the weights."""
    layout = Layout((Entry("w", (40, 25), 0, torch.float32), Entry("b", (1000,), 1000, torch.float32)))
    cells = Cells.of(layout, DEVICES["plain"], torch.randn(2000, generator=torch.Generator().manual_seed(2)))
    law = Written(cells, WriteVerify(), Rule.of(torch.ones(2000, dtype=torch.bool), WriteVerify()))
    effort = law.write(generator=torch.Generator().manual_seed(1))[1].effort
    assert effort.cells == law.effort.cells == 4000
    # A cell takes 6.3 ± 5.8 pulses: 4 standard errors of the mean over 4,000 are 0.37 of 5.3 extra ones.
    assert effort.write_cycles(law.effort) == pytest.approx(1, abs=0.07)
    assert effort.total_write_cycles(law.effort) == pytest.approx(1, abs=0.06)


def test_stuck_cells_exhaust_the_process_and_stay_wrong():
    device = replace(DEVICES["stuck"], stuck_low=1.0, stuck_high=0.0)
    cells, rule = laid_out(device)
    theta, ledger = Written(cells, PROCESS, rule).write(generator=torch.Generator().manual_seed(1))
    assert (theta == 0).all()
    levels = torch.stack(list(cells.levels()))
    assert torch.equal(ledger.errors, -levels)
    # A cell that should hold nearly nothing may read as within its tolerance for the noise of reading.
    hopeless = (rule.grades > 0) & (levels > 0.5)
    assert ledger.failed[hopeless].all()
    assert (ledger.pulses[hopeless] == PROCESS.max_pulses).all()


def test_an_unread_chip_is_one_written_once():
    cells, rule = laid_out(DEVICES["plain"])
    law = Written(cells, PROCESS, Rule(torch.zeros_like(rule.grades), rule.limits, rule.tolerances))
    assert law.effort.extra == 0
    assert law.effort.reads == 0
    from weightbank.cim import Chip

    torch.testing.assert_close(law.variance(), Chip(cells).variance())
    a, b = (chip.sample(2, generator=torch.Generator().manual_seed(3)) for chip in (law, Chip(cells)))
    torch.testing.assert_close(a, b)


def test_a_chip_at_rest_and_its_reading_add_up():
    cells, rule = laid_out(DEVICES["two bits, quantized, read"])
    law = Written(cells, PROCESS, rule)
    rest, reading = law.at_rest()
    torch.testing.assert_close(rest.variance() + reading.square(), law.variance())


def test_laws_that_cannot_be_simulated_are_refused():
    cells, rule = laid_out(DEVICES["plain"])
    with pytest.raises(DataError, match="use program"):
        Written(Cells(Device(4, sigma="pcm_joshi", verified_sigma=0.01), cells.layout, cells.theta), PROCESS, rule)
    with pytest.raises(LayoutError, match=r"wanted \(1950,\) or \(4, 1950\)"):
        Written(cells, PROCESS, Rule(rule.grades[:2], rule.limits, rule.tolerances))
    stuck = Cells(DEVICES["stuck"], cells.layout, cells.theta)
    with pytest.raises(DataError, match="compensation"):
        Written(stuck, PROCESS, Rule(rule.grades[:2], rule.limits, rule.tolerances), cells.on_device)
    with pytest.raises(DataError, match="first limit infinite"):
        Rule(rule.grades, (1.0, 0.1, 0.1), (0.1, 0.1, 0.1))
    with pytest.raises(DataError, match="grades up to 2"):
        Rule(rule.grades, (math.inf, 0.1), (0.1, 0.1))

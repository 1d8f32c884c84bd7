import math

import pytest
import torch

from weightbank.cim import Device, Ledger, WriteVerify
from weightbank.errors import DataError

CELLS = 60_000


def simulate(process: WriteVerify, sigma: float, **options):
    generator = torch.Generator().manual_seed(1)
    first = sigma * torch.randn(CELLS, generator=generator)
    return process.run(first, sigma, generator=generator, **options)


def test_pulses_of_the_redraw_model_are_geometric():
    """Mean 1/P, variance (1 - P)/P², residual a truncated normal; P = erf(tolerance / (sigma √2))."""
    ledger = simulate(WriteVerify(tolerance=0.06), 0.3)
    p = math.erf(0.06 / (0.3 * math.sqrt(2)))
    pulses = ledger.pulses.double()
    spread = math.sqrt(1 - p) / p
    assert abs(float(pulses.mean()) - 1 / p) < 4 * spread / math.sqrt(CELLS)
    assert float(pulses.std()) == pytest.approx(spread, rel=0.03)
    assert torch.equal(ledger.reads, ledger.pulses)
    assert not ledger.failed.any()
    assert float(ledger.errors.abs().max()) <= 0.06
    # Facts of the published setting: 6.3 pulses on average, residual 0.0345.
    assert 1 / p == pytest.approx(6.3, abs=0.05)
    assert float(ledger.errors.std()) == pytest.approx(0.0345, abs=5e-4)


@pytest.mark.parametrize(
    "process",
    [
        WriteVerify(),
        WriteVerify(tolerance=0.5),
        WriteVerify(read_noise=0.04),
        WriteVerify(max_pulses=1),
        WriteVerify(max_pulses=3),
        WriteVerify(max_pulses=4, read_noise=0.1),
        WriteVerify("incremental", tolerance=0.1),
        WriteVerify("incremental", tolerance=0.1, read_noise=0.03, gain=0.3, max_pulses=9),
    ],
)
@pytest.mark.parametrize("limit", [None, 0.25, math.inf])
def test_outcome_is_what_simulated_cells_take_and_keep(process, limit):
    ledger, outcome = simulate(process, 0.3, limit=limit), process.outcome(0.3, limit=limit)
    # Against 60,000 cells; the incremental model is itself a simulation of 262,144, so 1.11 times the error.
    for exact, found in (
        (outcome.pulses, ledger.pulses.double()),
        (outcome.reads, ledger.reads.double()),
        (outcome.failures, ledger.failed.double()),
        (outcome.variance, ledger.errors.double().square()),
    ):
        width = 4.5 * 1.11 * float(found.std()) / math.sqrt(CELLS)
        assert abs(exact - float(found.mean())) <= width + 1e-9


def test_incremental_pulses_take_about_ten_cycles():
    # gain 0.1, cycle noise 0.5: the order of the ten cycles per weight that full write-verify is known for
    assert 9 < WriteVerify("incremental").outcome(0.3).pulses < 14


def test_a_gain_of_one_without_noise_corrects_at_once():
    ledger = simulate(WriteVerify("incremental", gain=1.0, cycle_noise=0.0), 0.3)
    wrong = ledger.pulses > 1
    assert (ledger.pulses[wrong] == 2).all()
    assert (ledger.errors[wrong] == 0).all()


def test_the_model_of_two_widths_is_a_tolerance():
    device = Device(sigma=0.1, verified_sigma=0.03)
    process = WriteVerify.matching(device)
    assert process.outcome(0.1).variance == pytest.approx(0.03**2, rel=1e-9)
    assert process.tolerance == pytest.approx(0.053, abs=0.001)
    with pytest.raises(DataError, match="no tolerance"):
        WriteVerify.matching(Device(sigma=0.1, verified_sigma=0.0))
    with pytest.raises(DataError, match="name a process"):
        WriteVerify.matching(Device(sigma="pcm_joshi", verified_sigma=0.01))


def test_each_cell_may_have_its_own_sigma_limit_and_tolerance():
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([[0.1], [0.3]]).expand(2, 50_000)
    tolerance = torch.tensor([[0.05], [0.2]]).expand(2, 50_000)
    first = sigma * torch.randn(2, 50_000, generator=generator)
    ledger = WriteVerify().run(first, sigma, tolerance=tolerance, limit=tolerance, generator=generator)
    assert ledger.pulses.shape == (2, 50_000)
    for row, (s, t) in enumerate(((0.1, 0.05), (0.3, 0.2))):
        p = math.erf(t / (s * math.sqrt(2)))
        assert abs(float(ledger.pulses[row].double().mean()) - 1 / p) < 4.5 * math.sqrt(1 - p) / p / math.sqrt(50_000)


def test_unread_cells_keep_their_first_error_and_stuck_ones_use_all_pulses():
    errors = torch.tensor([0.9, 0.9, 0.9, 0.01])
    ledger = WriteVerify(max_pulses=7).run(
        errors,
        0.3,
        limit=torch.tensor([math.inf, 0.06, 0.06, 0.06]),
        stuck=torch.tensor([False, True, False, True]),
        generator=torch.Generator().manual_seed(8),
    )
    assert ledger.errors[[0, 1, 3]].tolist() == errors[[0, 1, 3]].tolist()
    assert ledger.pulses[[0, 1, 3]].tolist() == [1, 7, 1]
    assert ledger.reads[[0, 1, 3]].tolist() == [0, 7, 1]
    assert ledger.failed[[0, 1, 3]].tolist() == [False, True, False]
    assert errors[2] == pytest.approx(0.9)  # the caller's tensor is not touched


def test_effort_compares_with_verifying_everything():
    ledger = Ledger.written_once(torch.zeros(2, 5))
    assert ledger.effort.extra == 0
    marked = torch.zeros(2, 5, dtype=torch.bool)
    marked[0, :3] = True
    again = ledger.rewritten(marked, torch.full((2, 5), 0.5))
    assert again.effort.pulses == 13
    assert again.errors.sum() == 1.5
    assert again.row_pulses().tolist() == [2, 1]
    full = WriteVerify().outcome(0.3).effort(10)
    assert again.effort.write_cycles(full) == pytest.approx(3 / (full.pulses - 10))
    assert again.effort.total_write_cycles(full) == pytest.approx(13 / full.pulses)
    assert (again.effort + full * 2).cost(pulse=2, read=3) == pytest.approx(2 * (13 + 2 * full.pulses) + 6 * full.reads)
    with pytest.raises(DataError, match="nothing to compare"):
        full.write_cycles(ledger.effort)


@pytest.mark.parametrize("bad", [{"tolerance": 0}, {"max_pulses": 0}, {"read_noise": -1}, {"gain": 2.0}])
def test_impossible_processes_are_refused(bad):
    with pytest.raises(DataError, match="wanted pulse="):
        WriteVerify(**bad)

import math

import pytest
import torch

from weightbank.cim.statistics import FITS, Drift, Fit, Table
from weightbank.errors import DataError


@pytest.mark.parametrize(
    ("name", "microsiemens", "std"),
    [
        # aihwkit: -1.1731 x² + 1.9650 x + 0.2635 with x = g / 25 µS
        ("pcm_aihwkit", 12.5, -1.1731 / 4 + 1.9650 / 2 + 0.2635),
        ("pcm_joshi", 10.0, -0.00178767 * 100 + 0.7585724 + 0.28638599),
        ("rram_wan", 20.0, 1.536e-4 * 8000 - 1.167e-2 * 400 + 0.2374 * 20 + 1.053),
    ],
)
def test_published_fits_have_their_published_values(name, microsiemens, std):
    fit = FITS[name]
    got = fit(torch.tensor([microsiemens / fit.largest], dtype=torch.float64))
    assert float(got) * fit.largest == pytest.approx(std, rel=1e-12)


def test_a_fit_is_never_negative():
    assert float(Fit((-1.0,), 10.0)(torch.tensor([0.5]))) == 0


def test_table_is_linear_between_and_flat_beyond():
    table = Table((0.2, 0.6), (0.1, -0.1), (0.02, 0.04))
    g = torch.tensor([0.0, 0.2, 0.3, 0.6, 1.0])
    torch.testing.assert_close(table(g), torch.tensor([0.02, 0.02, 0.025, 0.04, 0.04]))
    torch.testing.assert_close(table.bias(g), torch.tensor([0.1, 0.1, 0.05, -0.1, -0.1]))


def test_measurements_give_mean_error_and_unbiased_deviation(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("cycle,target,actual\n1,10,11\n1,10,13\n2,10,99\n1,20,20\n1,20,16\n")
    table = Table.read(path, cycle=1)
    assert table.targets == (0.5, 1.0)
    assert table.errors == (2 / 20, -2 / 20)
    assert table.stds == pytest.approx((math.sqrt(2) / 20, math.sqrt(8) / 20))
    assert Table.read(path, cycle=1, largest=40).targets == (0.25, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target,value\n1,2\n", "actual"),
        ("target,actual\n1,2\n1,x\n", "line 3"),
        ("target,actual\n1,2\n2,2\n2,3\n", "only once"),
        ("target,actual\n", "0 targets"),
        ("target,actual\n0,2\n0,3\n", "full conductance is 0"),
    ],
)
def test_bad_measurements_are_refused(tmp_path, text, message):
    path = tmp_path / "cells.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        Table.read(path)


def test_missing_measurements_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Table.read(tmp_path / "none.csv")


def test_bad_tables_are_refused():
    with pytest.raises(DataError, match="increase"):
        Table((0.5, 0.5), (0.0, 0.0), (0.1, 0.1))
    with pytest.raises(DataError, match="negative"):
        Table((0.5,), (0.0,), (-0.1,))


def test_drift_moments_are_those_of_drawn_exponents():
    drift = Drift(seconds=20 * math.e**3, exponent=0.06, spread=0.03)
    draws = 0.06 + 0.03 * torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = (-3 * draws).exp()
    first, second = drift.moments(torch.tensor([0.3], dtype=torch.float64))
    for exact, sample in ((first, factor), (second, factor.square())):
        assert abs(float(exact) - float(sample.mean())) < 4 * float(sample.std()) / math.sqrt(len(sample))


def test_drift_of_phase_change_cells_is_slower_when_full():
    mean, spread = Drift(1000, exponent="pcm_aihwkit").exponents(torch.tensor([0.0, 0.1, 1.0]))
    torch.testing.assert_close(mean, torch.tensor([0.1, -0.0155 * math.log(0.1) + 0.0244, 0.049]))
    torch.testing.assert_close(spread, torch.tensor([0.045, -0.0125 * math.log(0.1) - 0.0059, 0.008]))


@pytest.mark.parametrize("bad", [{"seconds": 1}, {"seconds": 100, "spread": -1}, {"seconds": 100, "exponent": "none"}])
def test_impossible_drift_is_refused(bad):
    with pytest.raises(DataError, match="wanted"):
        Drift(**bad)

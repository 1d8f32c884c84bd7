import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from weightbank.evaluation.estimate import Estimate

VALUES = [0.91, 0.95, 0.93, 0.88, 0.97, 0.94]


def test_mean_and_standard_error_are_scipys():
    estimate = Estimate.of(VALUES)
    assert estimate.mean == pytest.approx(np.mean(VALUES), abs=1e-15)
    assert estimate.stderr == pytest.approx(stats.sem(VALUES), abs=1e-15)
    assert estimate.n == 6


def test_a_large_common_offset_leaves_the_standard_error_alone():
    moved = Estimate.of([value + 1e8 for value in VALUES]).stderr
    assert moved == pytest.approx(Estimate.of(VALUES).stderr, rel=1e-6)  # 1e8 keeps 8 digits behind the point


def test_one_value_has_no_standard_error():
    assert Estimate.of([0.5]).stderr is None
    assert Estimate.over(torch.tensor([0.5])).stderr is None
    assert str(Estimate.of([0.5])) == "0.5 (n=1)"


def test_no_value_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Estimate.of([])
    with pytest.raises(ValueError, match="at least one"):
        Estimate.over(torch.empty(0))


def test_over_examples_agrees_with_of_values():
    over = Estimate.over(torch.tensor(VALUES, dtype=torch.float64))
    assert over.mean == pytest.approx(Estimate.of(VALUES).mean, abs=1e-15)
    assert over.stderr == pytest.approx(Estimate.of(VALUES).stderr, abs=1e-15)


def test_single_values_stay_reachable():
    estimate = Estimate.of(VALUES)
    assert (estimate.min, estimate.max) == (0.88, 0.97)
    assert estimate.quantile(0.25) == pytest.approx(np.quantile(VALUES, 0.25), abs=1e-15)
    with pytest.raises(ValueError, match="kept no single values"):
        Estimate(0.5, 0.1, 10).min


@pytest.mark.parametrize(
    ("mean", "stderr", "text"),
    [
        (0.98123, 0.00042, "0.9812 ± 0.0004 (n=30)"),
        (0.98123, 0.00012, "0.98123 ± 0.00012 (n=30)"),
        (1234.5, 56.0, "1234 ± 56 (n=30)"),
        (0.5, 0.0, "0.5 ± 0 (n=30)"),
        (0.5, 1e-12, "0.500000 ± 0.000000 (n=30)"),
        (3.2e-9, 4e-10, "(3.2 ± 0.4)e-09 (n=30)"),
        (0.0, 2e-5, "(0 ± 2)e-05 (n=30)"),
        (0.9, None, "0.9 (n=30)"),
        (0.0, 0.0, "0 ± 0 (n=30)"),
        (math.inf, math.inf, "inf (n=30)"),
    ],
)
def test_digits_follow_the_standard_error(mean, stderr, text):
    assert str(Estimate(mean, stderr, 30)) == text


def test_dict_is_json_and_holds_every_value():
    plain = json.loads(json.dumps(Estimate.of(VALUES).to_dict()))
    assert plain["values"] == VALUES
    assert (plain["min"], plain["max"], plain["n"]) == (0.88, 0.97, 6)
    assert Estimate(0.5, None, 3).to_dict() == {"mean": 0.5, "stderr": None, "n": 3}


def test_an_estimate_reads_as_its_mean():
    assert float(Estimate.of([1.0, 3.0])) == 2.0

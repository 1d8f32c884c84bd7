import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from weightbank.evaluation.detection import auroc, fpr95


def scores(n: int, m: int, seed: int = 0, gap: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    known = torch.randn(n, generator=generator, dtype=torch.float64)
    return known, gap + torch.randn(m, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_auroc_and_fpr95_are_sklearns_with_and_without_ties(step):
    known, foreign = scores(300, 200)
    if step:
        known, foreign = (known / step).round() * step, (foreign / step).round() * step
    y, s = np.r_[np.zeros(300), np.ones(200)], torch.cat([known, foreign]).numpy()
    assert auroc(known, foreign).mean == pytest.approx(roc_auc_score(y, s), abs=1e-6)  # single precision inside
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    assert fpr95(known, foreign).mean == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_scores_far_outside_the_unit_interval_keep_their_order():
    # A sigmoid would make all of these equal to one.
    known, foreign = torch.tensor([100.0, 200.0]), torch.tensor([300.0, 150.0])
    assert auroc(known, foreign).mean == 0.75


def test_scores_that_differ_in_the_last_bits_keep_their_order():
    known = torch.full((4,), 0.5, dtype=torch.float64)
    assert auroc(known, known + 1e-15).mean == 1.0
    assert auroc(known, known).mean == 0.5


def test_perfect_separation():
    known, foreign = scores(20, 30, gap=100.0)
    assert auroc(known, foreign).mean == 1.0
    assert fpr95(known, foreign).mean == 0.0


@pytest.mark.parametrize("measure", [auroc, fpr95])
def test_standard_error_is_the_spread_over_repeated_data(measure):
    found = [measure(*scores(150, 200, seed, gap=1.5)) for seed in range(300)]
    spread = np.std([one.mean for one in found], ddof=1)
    # 300 repetitions know their spread to 1/sqrt(600) = 4 %; the rest is for the normal approximation.
    assert np.mean([one.stderr for one in found]) == pytest.approx(spread, rel=0.2)


def test_standard_error_with_ties_is_delongs_double_loop():
    known, foreign = (part.round() for part in scores(40, 25))
    wins = np.array([[float(f > k) + 0.5 * float(f == k) for k in known] for f in foreign])
    wanted = np.sqrt(wins.mean(1).var(ddof=1) / 25 + wins.mean(0).var(ddof=1) / 40)
    assert auroc(known, foreign).stderr == pytest.approx(wanted, rel=1e-12)
    assert auroc(known, foreign).mean == pytest.approx(wins.mean(), abs=1e-6)


def test_one_example_has_no_standard_error():
    assert auroc(torch.tensor([0.0]), torch.tensor([1.0, 2.0])).stderr is None

import math

import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from weightbank.evaluation import Estimate, Evaluation
from weightbank.posterior.compare import Compared, Role
from weightbank.posterior.verdict import paired, verdict

LABELS = torch.tensor([0, 1, 0, 1] * 25)


def predicted(p_label: Float64[Tensor, " N"], labels: Tensor = LABELS) -> Evaluation:
    """An evaluation of two classes with these probabilities of the labels."""
    p = torch.empty(len(labels), 2, dtype=torch.float64)
    p[range(len(labels)), labels] = p_label
    p[range(len(labels)), 1 - labels] = 1 - p_label
    nll = Estimate.over(-p_label.log())
    return Evaluation("toy", "classification", 5, {}, {"nll": nll}, p, torch.zeros_like(p), labels)


def row(role: Role, evaluation: Evaluation, rows: int = 0, disk: int = 1000) -> Compared:
    return Compared(role, role, rows, disk, None, 0.1, evaluation)


def likely(shift: float, noise: float = 0.0) -> Float64[Tensor, " N"]:
    generator = torch.Generator().manual_seed(0)
    base = 0.6 + 0.3 * torch.rand(len(LABELS), generator=generator, dtype=torch.float64)
    spread = noise * torch.randn(len(LABELS), generator=generator, dtype=torch.float64)
    return base * math.exp(-shift) * spread.exp()


def test_paired_differences_are_those_of_each_example() -> None:
    first, second = predicted(likely(0.0)), predicted(likely(0.05, noise=0.01))
    found = paired(first, second)
    differences = likely(0.0).log() - likely(0.05, noise=0.01).log()
    assert found.mean == pytest.approx(float(differences.mean()), rel=1e-12)
    assert found.stderr == pytest.approx(float(differences.std()) / 10, rel=1e-12)  # 100 examples
    # the examples differ far more among themselves than the two predictions do
    assert found.stderr < 0.1 * (first["nll"].stderr or 0)


def test_other_examples_are_compared_by_their_two_standard_errors() -> None:
    first, second = predicted(likely(0.0)), predicted(likely(0.05), labels=1 - LABELS)
    found = paired(first, second)
    a, b = first["nll"], second["nll"]
    assert found.mean == pytest.approx(b.mean - a.mean)
    assert found.stderr == pytest.approx(math.hypot(a.stderr or 0, b.stderr or 0))


def test_regressions_are_compared_by_squared_errors() -> None:
    targets = torch.arange(4.0, dtype=torch.float64)

    def fitted(error: float) -> Evaluation:
        values = targets + error
        return Evaluation("line", "regression", 1, {}, {"rmse": Estimate(error, 0.0, 4)}, values, 0 * values, targets)

    found = paired(fitted(1.0), fitted(3.0))
    assert (found.mean, found.stderr) == (8.0, 0.0)
    assert verdict([row("window", fitted(3.0), 2), row("all", fitted(1.0), 4)]) == (
        "More rows improved predictions here: RMSE 3 ± 0 with the newest 2 rows, 1 ± 0 with all 4 "
        "(paired difference -8 ± 0)."
    )


@pytest.mark.parametrize(
    ("shift", "noise", "opening"),
    [
        (-0.05, 0.0, "More rows improved predictions here: NLL "),
        (0.0, 0.1, "More rows did not improve predictions here: NLL "),
        (0.05, 0.0, "More rows made predictions worse here: NLL "),
    ],
)
def test_more_rows_are_judged_by_the_paired_difference(shift: float, noise: float, opening: str) -> None:
    narrow, full = predicted(likely(0.1)), predicted(likely(0.1 + shift, noise))
    text = verdict([row("window", narrow, 20), row("all", full, 1200)])
    assert text.startswith(opening)
    assert narrow["nll"].text in text
    assert f"{full['nll'].text} with all 1,200 (paired difference " in text


def test_all_comparisons_get_their_sentence_with_numbers() -> None:
    worse, same = predicted(likely(0.1)), predicted(likely(0.0, 0.05))
    text = verdict(
        [
            row("last", worse),
            row("mean", same),
            row("diagonal", worse),
            row("window", worse, 20),
            row("spread", same, 20),
            row("all", predicted(likely(0.0)), 400, disk=1_000_000),
            row("other", same, 400, disk=260_000),
            row("snapshots", predicted(likely(-0.05)), 30),
        ]
    )
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("More rows improved")
    assert lines[1].startswith("More rows did not improve")
    assert "predicts better than the last iterate" in lines[2]
    assert "predicts as well as their mean alone (SWA)" in lines[3]
    assert "in 260 kB instead of 1.0 MB" in lines[4]
    assert lines[5].startswith("Best here: snapshots, NLL ")


def test_a_worse_posterior_is_called_worse() -> None:
    text = verdict([row("last", predicted(likely(0.0))), row("all", predicted(likely(0.2)), 50)])
    assert "predicts worse than the last iterate" in text


def test_without_rows_there_is_nothing_to_say() -> None:
    assert verdict([row("last", predicted(likely(0.0)))]) == "There are no rows to compare."

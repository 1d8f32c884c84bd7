from pathlib import Path

import pytest
import torch
from recorder_tasks import made

from weightbank.distributions import Gaussian, Keep, Moments, Sketch, Window
from weightbank.errors import LayoutError
from weightbank.evaluation import evaluate
from weightbank.posterior.compare import compare, compare_law
from weightbank.posterior.recorder import record
from weightbank.store import RowLog
from weightbank.task import Task


def recorded(keep: Keep = "all", format: str = "fp32", where: Path | str = ":memory:") -> tuple[Task, Moments]:
    task, optimizer = made()
    moments = Moments(task.layout, rows=RowLog(where, format=format), keep=keep)
    record(task, optimizer, moments, epochs=8)  # 48 iterates
    return task, moments


def test_every_law_of_a_run_is_there_in_order() -> None:
    task, moments = recorded()
    rows = compare(task, moments, samples=5, window=10, others={"in 8 bits": recorded(format="bfp8")[1]})
    assert [(row.name, row.role, row.rows) for row in rows] == [
        ("last iterate", "last", 0),
        ("SWA (mean)", "mean", 0),
        ("SWAG diagonal", "diagonal", 0),
        ("SWAG newest 10", "window", 10),
        ("SWAG 10 spread", "spread", 10),
        ("SWAG all 48", "all", 48),
        ("in 8 bits", "other", 48),
        ("5 snapshots", "snapshots", 5),
    ]
    assert [row.evaluation.samples for row in rows] == [1, 1, 5, 5, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("keep", "roles"),
    [
        (Window(10), ["last", "mean", "diagonal", "all", "snapshots"]),
        (Window(30), ["last", "mean", "diagonal", "window", "all", "snapshots"]),
        (Sketch(4), ["last", "mean", "diagonal", "all"]),
    ],
)
def test_laws_that_a_recording_cannot_give_are_left_out(keep: Keep, roles: list[str]) -> None:
    task, moments = recorded(keep)
    assert [row.role for row in compare(task, moments, samples=3, window=10)] == roles


def test_without_rows_there_are_mean_and_variance() -> None:
    task, optimizer = made()
    moments = Moments(task.layout)
    record(task, optimizer, moments, epochs=2)
    assert [row.role for row in compare(task, moments, samples=3)] == ["last", "mean", "diagonal"]


def test_each_row_is_what_evaluate_says_of_its_law() -> None:
    task, moments = recorded()
    rows = {row.role: row for row in compare(task, moments, samples=4, window=10)}
    laws = {
        "last": task.theta(),
        "mean": moments.mean(),
        "diagonal": moments.gaussian(covariance="diagonal"),
        "window": moments.gaussian(window=10),
        "spread": moments.gaussian(thin=5),
        "all": moments.gaussian(),
        "snapshots": moments.snapshots(),
    }
    assert rows.keys() == laws.keys()
    for role, law in laws.items():
        assert torch.equal(rows[role].evaluation.prediction, evaluate(task, law, 4).prediction)


def test_options_reach_the_laws() -> None:
    task, moments = recorded()
    rows = {row.role: row for row in compare(task, moments, samples=4, burn_in=8, thin=2, scale=0.1, window=5)}
    law = moments.gaussian(burn_in=8, thin=2, scale=0.1)
    assert torch.equal(rows["all"].evaluation.prediction, evaluate(task, law, 4).prediction)
    assert rows["all"].rows == 20
    sample = {row.role: row for row in compare(task, moments, samples=4, covariance="sample")}
    expected = evaluate(task, moments.gaussian(covariance="sample"), 4).prediction
    assert torch.equal(sample["all"].evaluation.prediction, expected)


def test_other_weights_can_be_the_last() -> None:
    task, moments = recorded()
    other = torch.zeros(task.layout.size)
    row = compare(task, moments, samples=2, last=other)[0]
    assert torch.equal(row.evaluation.prediction, evaluate(task, other).prediction)


def test_bytes_are_those_on_the_disk(tmp_path: Path) -> None:
    task, moments = recorded(where=tmp_path)
    rows = {row.role: row for row in compare(task, moments, samples=2, window=10)}
    moments.close()
    assert moments.rows is not None
    assert rows["all"].disk == moments.rows.nbytes
    stride, vector = 4096, 4096  # 387 weights are 1,548 bytes, one page
    assert rows["window"].disk == 10 * stride + 3 * vector
    assert rows["snapshots"].disk == 2 * stride + vector
    assert rows["diagonal"].disk == 2 * rows["mean"].disk == 2 * vector


def test_foreign_inputs_add_an_auroc() -> None:
    task, moments = recorded()
    foreign = 5 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    rows = compare(task, moments, samples=2, ood=foreign)
    assert all("auroc" in row.metrics for row in rows)
    assert {"accuracy", "nll", "ece", "brier", "auroc", "disk", "memory", "seconds"} < rows[0].to_dict().keys()


def test_a_law_of_another_model_is_refused() -> None:
    task, _ = recorded()
    other = Moments(Task("small", torch.nn.Linear(2, 2), task.loss, task.train, task.test).layout)
    other.update(torch.zeros(6))
    with pytest.raises(LayoutError, match="6 weights"):
        compare(task, other)


def test_an_exported_law_is_compared_with_its_mean(tmp_path: Path) -> None:
    task, moments = recorded()
    law = moments.gaussian()
    law.save(tmp_path / "law.safetensors")
    rows = compare_law(task, Gaussian.load(tmp_path / "law.safetensors"), 1234, samples=3)
    assert [(row.role, row.rows, row.disk) for row in rows] == [("mean", 0, 4096), ("all", 48, 1234)]
    # the saved rows are rounded once to float32
    expected = evaluate(task, law, 3).prediction
    torch.testing.assert_close(rows[1].evaluation.prediction, expected, rtol=1e-4, atol=1e-6)

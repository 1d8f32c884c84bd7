import csv
import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recorder_tasks import BATCHES, made, opened

from weightbank.distributions import Keep, Moments, Sketch, Window
from weightbank.errors import DataError, ResumeError
from weightbank.posterior.recorder import last_weights, record
from weightbank.posterior.schedule import swag_schedule
from weightbank.posterior.timings import Timings
from weightbank.store import RowLog


class Stopped(Exception):
    """A stand-in for whatever ends a process."""


def contents(moments: Moments) -> dict[str, Any]:
    """Everything that is recorded, rows as their checksums."""
    rows = moments.rows
    assert rows is not None
    held = torch.stack([rows.row(number) for number in range(rows.first, rows.count)])
    return {
        "steps": rows.steps,
        "checksums": rows.journal.crcs.tolist(),
        "held": held,
        "mean": moments.mean(),
        "variance": moments.variance(),
    }


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(
        torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        for name, value in first.items()
    )


def test_the_iterates_are_the_weights_after_each_step() -> None:
    task, optimizer = made()
    moments = Moments(task.layout, rows=RowLog(":memory:"))
    record(task, optimizer, moments, epochs=2)
    assert moments.rows is not None
    assert moments.rows.steps == list(range(1, 2 * BATCHES + 1))
    reference = moments.rows.reference()
    assert reference is not None
    # row = θ - reference in float32, so adding it back may round once
    torch.testing.assert_close(reference + moments.rows.row(2 * BATCHES - 1), task.theta(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("every", "skip", "steps"),
    [(1, 2, [13, 14, 15, 16, 17, 18]), (4, 0, [4, 10, 16]), (3, 1, [9, 12, 15, 18]), (6, 2, [18])],
)
def test_the_count_of_minibatches_restarts_with_each_epoch(every: int, skip: int, steps: list[int]) -> None:
    task, optimizer = made()
    moments = Moments(task.layout, rows=RowLog(":memory:"))
    record(task, optimizer, moments, epochs=3, every=every, skip_epochs=skip)
    assert moments.rows is not None
    assert moments.rows.steps == steps


@pytest.mark.parametrize("options", [{"epochs": 0}, {"epochs": 2, "skip_epochs": 2}, {"epochs": 1, "every": 0}])
def test_a_run_that_would_record_nothing_is_refused(options: dict[str, int]) -> None:
    task, optimizer = made()
    with pytest.raises(DataError, match="at least one epoch to record"):
        record(task, optimizer, Moments(task.layout), **options)  # type: ignore[arg-type]


def test_several_moments_take_the_same_iterates() -> None:
    task, optimizer = made()
    exact, rounded = (Moments(task.layout, rows=RowLog(":memory:", format=name)) for name in ("fp32", "bfp8"))
    record(task, optimizer, {"exact": exact, "rounded": rounded}, epochs=2)
    assert torch.equal(exact.mean(), rounded.mean())
    assert exact.count == rounded.count == 2 * BATCHES


@pytest.mark.parametrize(
    ("format", "keep", "stops", "often"),
    [
        ("fp32", None, (1,), False),  # before the first checkpoint
        ("fp32", None, (4, 2), True),
        ("fp32", None, (17, 3), False),
        ("bfp8", None, (4, 2), False),
        ("bfp8", None, (11, 3, 5), True),
        ("bf16", Window(4), (10,), False),
        ("bf16", Window(4), (11, 5), True),
        ("fp32", Sketch(3), (11,), False),
        ("fp32", Sketch(3), (14, 2), True),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, format: str, keep: Keep | None, stops: tuple[int, ...], often: bool
) -> None:
    def run(directory: Path, stop: int | None) -> tuple[dict[str, Any], torch.Tensor]:
        def after(number: int) -> None:
            if number == stop:
                raise Stopped

        task, optimizer = made(after)
        schedule = swag_schedule(optimizer, start=2, lr=0.05)
        moments = opened(task, directory, format, keep)
        try:
            record(
                task,
                optimizer,
                moments,
                epochs=3,
                directory=directory,
                scheduler=schedule,
                checkpoint_seconds=0.0 if often else 1e9,
            )
            return contents(moments), task.theta()
        finally:
            moments.close()

    whole, weights = run(tmp_path / "whole", None)
    for stop in stops:
        with pytest.raises(Stopped):
            run(tmp_path / "parts", stop)
    resumed, resumed_weights = run(tmp_path / "parts", None)
    assert same(whole, resumed)
    assert torch.equal(weights, resumed_weights)


def test_another_run_does_not_go_on_with_these_rows(tmp_path: Path) -> None:
    task, optimizer = made()
    moments = opened(task, tmp_path, "fp32")
    record(task, optimizer, moments, epochs=1)
    moments.close()
    task, optimizer = made()
    with torch.no_grad():
        task.model[0].bias.add_(1.0)  # type: ignore[index, union-attr, operator]
    again = opened(task, tmp_path, "fp32")
    with pytest.raises(ResumeError, match="does not repeat itself"):
        record(task, optimizer, again, epochs=1)
    again.close()


def test_epoch_times_are_written_once_and_add_up(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    totals = []
    for stop in (9, 3, None):

        def after(number: int, stop: int | None = stop) -> None:
            if number == stop:
                raise Stopped

        task, optimizer = made(after)
        moments = opened(task, tmp_path, "fp32")
        timings = Timings(path, resume=True)
        try:
            totals.append(
                record(
                    task,
                    optimizer,
                    moments,
                    epochs=4,
                    directory=tmp_path,
                    timings=timings,
                    checkpoint_seconds=0.0,
                )
            )
        except Stopped:
            continue
        finally:
            moments.close()
    rows = list(csv.reader(path.read_text().splitlines()))
    assert [row[0] for row in rows] == [f"epoch {number} time (s)" for number in range(4)]
    assert sum(float(row[1]) for row in rows) == pytest.approx(totals[0])  # seconds before a stop are counted


def test_the_last_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    task, optimizer = made()
    assert last_weights(task, tmp_path) is None
    record(task, optimizer, Moments(task.layout), epochs=1, directory=tmp_path)
    trained = task.theta()
    other, _ = made()
    found = last_weights(other, tmp_path)
    assert found is not None
    assert torch.equal(found, trained)
    assert not torch.equal(other.theta(), trained)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["fp32", "bfp8"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, format: str) -> None:
    script = Path(__file__).with_name("recorder_tasks.py")
    task, optimizer = made()
    whole = opened(task, tmp_path / "whole", format)
    record(task, optimizer, whole, epochs=20, directory=tmp_path / "whole")

    command = [sys.executable, str(script), str(tmp_path / "parts"), format, "20"]
    for steps in (3, 25, 31):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            seen = list(itertools.islice(child.stdout, steps))
            child.send_signal(signal.SIGKILL)
        assert len(seen) == steps
        assert child.returncode == -signal.SIGKILL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    parts = opened(task, tmp_path / "parts", format)
    assert same(contents(whole), contents(parts))
    assert torch.equal(task.theta(), last_weights(task, tmp_path / "parts"))  # type: ignore[arg-type]
    whole.close()
    parts.close()

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightbank.errors import StoreError
from weightbank.logs import EVENTS, FILE, EpochRecord, TrainingLog, read_log
from weightbank.task import Task
from weightbank.training import epochs

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


def task() -> Task:
    torch.manual_seed(0)
    return Task("toy", nn.Linear(4, 3), F.cross_entropy, (X, Y), (X, Y), batch_size=8)


def run(folder: Path, log: TrainingLog | None, *, count: int, stop: int | None = None) -> Task:
    made = task()
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    checkpoint = folder / "checkpoint.safetensors"
    for epoch in epochs(made, optimizer, count=count, scheduler=scheduler, checkpoint=checkpoint, log=log):
        if epoch == stop:
            break
    return made


def test_a_line_has_the_mean_loss_of_the_examples_of_an_epoch(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, tensorboard=False) as log:
        run(tmp_path, log, count=2)
    by_hand, losses = task(), []
    optimizer = torch.optim.SGD(by_hand.model.parameters(), lr=0.5)
    for x, y in by_hand.batches("train"):
        loss = F.cross_entropy(by_hand.model(x), y)
        losses.append(float(loss.detach()) * len(y))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["step"] for line in lines] == [3, 6]
    assert [line["learning_rate"] for line in lines] == [0.5, 0.25]
    assert lines[0]["loss"] == pytest.approx(sum(losses) / 20)
    assert lines[0]["seconds"] > 0
    assert read_log(tmp_path)[1] == EpochRecord(**lines[1])


def test_an_epoch_that_comes_again_stands_there_once(tmp_path: Path) -> None:
    run(tmp_path, TrainingLog(tmp_path, tensorboard=False), count=4, stop=2)  # epoch 2 is logged, but not saved
    with open(tmp_path / FILE, "a") as file:
        file.write('{"epoch": 3, "st')  # killed while it wrote
    assert [record.epoch for record in read_log(tmp_path)] == [0, 1, 2]
    run(tmp_path, TrainingLog(tmp_path, tensorboard=False), count=4)
    resumed = read_log(tmp_path)
    run(tmp_path / "straight", TrainingLog(tmp_path / "straight", tensorboard=False), count=4)
    straight = read_log(tmp_path / "straight" / FILE)
    assert [(r.epoch, r.step, r.loss) for r in resumed] == [(r.epoch, r.step, r.loss) for r in straight]


@pytest.mark.filterwarnings("ignore")
def test_the_same_numbers_are_in_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TrainingLog(tmp_path) as log:
        run(tmp_path, log, count=3)
    events = accumulator.EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    for name in ("loss", "learning_rate"):
        shown = [(event.step, event.value) for event in events.Scalars(f"training/{name}")]
        wanted = [(record.step, pytest.approx(getattr(record, name))) for record in read_log(tmp_path)]
        assert shown == wanted


def test_a_log_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="name another directory"):
        run(tmp_path, TrainingLog(tmp_path / "file"), count=1)
    with pytest.raises(StoreError, match="no such log"):
        read_log(tmp_path / "nothing")


def test_scores_of_checks_are_lines_of_their_own(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, tensorboard=False) as log:
        log.scores(0, {"a": 0.5, "b": float("nan")})
        log.scores(10, {"a": 0.75, "b": 0.25})
    again = TrainingLog(tmp_path, tensorboard=False)
    again.scores(10, {"a": 0.8, "b": 0.3})
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert lines == [{"step": 0, "scores": {"a": 0.5, "b": None}}, {"step": 10, "scores": {"a": 0.8, "b": 0.3}}]
    assert read_log(tmp_path) == []

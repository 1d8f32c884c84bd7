import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from weightbank.distributions import Moments
from weightbank.errors import CorruptError, DataError, DivergedError, ResumeError
from weightbank.task import Task
from weightbank.training import epochs


def made(*, loader: str = "tensors", rate: float = 0.1) -> tuple[Task, torch.optim.SGD]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=generator)
    y = torch.randint(0, 3, (60,), generator=generator)
    train: Any = (x, y)
    if loader != "tensors":
        data = TensorDataset(x, y)
        sampler = RandomSampler(data, generator=torch.Generator().manual_seed(2))
        train = {
            "DataLoader": lambda: DataLoader(data, 16, shuffle=True),
            "sampler": lambda: DataLoader(data, 16, sampler=sampler),
            "batch sampler": lambda: DataLoader(data, batch_sampler=BatchSampler(sampler, 16, False)),
        }[loader]()
    task = Task("toy", model, F.cross_entropy, train, (x, y), batch_size=16)
    return task, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def test_the_loop_equals_one_written_by_hand() -> None:
    task, optimizer = made()
    assert list(epochs(task, optimizer, count=2)) == [0, 1]
    trained = task.theta()
    task, optimizer = made()
    task.model.train()
    for _ in range(2):
        for x, y in task.batches("train"):
            optimizer.zero_grad()
            F.cross_entropy(task.model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert torch.equal(trained, task.theta())


def test_each_step_and_each_epoch_get_the_weights_after_the_step() -> None:
    task, optimizer = made()
    steps: list[int] = []
    ends: list[torch.Tensor] = []
    for _ in epochs(
        task,
        optimizer,
        count=2,
        each_step=lambda theta, *, step: steps.append(step),
        each_epoch=lambda theta, *, step: ends.append(theta.clone()),
    ):
        assert torch.equal(ends[-1], task.theta())
    assert steps == list(range(1, 9))


class Stop(Exception):
    pass


@pytest.mark.parametrize("loader", ["tensors", "DataLoader", "sampler", "batch sampler"])
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(tmp_path: Path, loader: str) -> None:
    def run(stop: int | None) -> torch.Tensor | None:
        task, optimizer = made(loader=loader)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        average = Moments(task.layout)
        seen = 0

        def take(theta: torch.Tensor, *, step: int) -> None:
            nonlocal seen
            average.update(theta)
            seen += 1
            if seen == stop:
                raise Stop

        path = None if stop is None else tmp_path / "run.safetensors"
        each = {"each_step": take, "scheduler": scheduler, "stateful": {"average": average}}
        for _ in epochs(task, optimizer, count=3, checkpoint=path, checkpoint_seconds=0, **each):  # type: ignore[arg-type]
            pass
        buffers = torch.cat([buffer.reshape(-1).float() for buffer in task.model.buffers()])
        return torch.cat([task.theta(), average.mean(), average.variance(), buffers])

    whole = run(None)
    for stop in (1, 4, 3, 2):
        with pytest.raises(Stop):
            run(stop)
    resumed = run(99)
    assert whole is not None
    assert resumed is not None
    assert torch.equal(whole, resumed)


def test_a_loader_with_other_generators_is_refused(tmp_path: Path) -> None:
    task, optimizer = made(loader="sampler")
    for _ in epochs(task, optimizer, count=1, checkpoint=tmp_path / "run.safetensors"):
        pass
    task, optimizer = made(loader="DataLoader")
    with pytest.raises(ResumeError, match="1 generators in the data loader, there are 0 now"):
        list(epochs(task, optimizer, count=2, checkpoint=tmp_path / "run.safetensors"))


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    task, optimizer = made()
    assert list(epochs(task, optimizer, count=2, checkpoint=tmp_path / "c")) == [0, 1]
    trained = task.theta()
    task, optimizer = made()
    assert list(epochs(task, optimizer, count=2, checkpoint=tmp_path / "c")) == []
    assert torch.equal(task.theta(), trained)


def test_interrupt_finishes_the_step_and_saves(tmp_path: Path) -> None:
    task, optimizer = made()
    path = tmp_path / "run.safetensors"
    seen: list[int] = []

    def take(theta: torch.Tensor, *, step: int) -> None:
        seen.append(step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        list(epochs(task, optimizer, count=2, each_step=take, checkpoint=path))
    task, optimizer = made()
    list(epochs(task, optimizer, count=2, each_step=take, checkpoint=path))
    assert seen == list(range(1, 9))


def test_a_diverged_loss_stops_before_anyone_sees_the_weights() -> None:
    task, optimizer = made(rate=1e30)
    seen: list[bool] = []
    with pytest.raises(DivergedError, match="at step"):
        list(epochs(task, optimizer, count=9, each_step=lambda t, *, step: seen.append(bool(t.isfinite().all()))))


def test_no_training_batches_is_an_error() -> None:
    task, optimizer = made()
    task.train = []
    with pytest.raises(DataError, match="no batch came"):
        list(epochs(task, optimizer, count=1))


def test_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    task, optimizer = made()
    list(epochs(task, optimizer, count=1, checkpoint=path))
    other = Task("other", nn.Linear(4, 3), F.cross_entropy, task.train, task.test)
    with pytest.raises(ResumeError, match="another model"):
        list(epochs(other, torch.optim.SGD(other.model.parameters(), 0.1), count=2, checkpoint=path))
    with pytest.raises(ResumeError, match="average"):
        list(epochs(task, optimizer, count=2, checkpoint=path, stateful={"average": Moments(task.layout)}))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptError):
        list(epochs(task, optimizer, count=2, checkpoint=path))

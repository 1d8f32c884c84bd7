"""Train a task and record its iterates: one function for a new run and for one that was stopped or killed."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from weightbank.distributions import Moments
from weightbank.errors import DataError
from weightbank.logs import EpochRecord
from weightbank.posterior.timings import Timings
from weightbank.store.arrays import ArrayFile
from weightbank.task import Task
from weightbank.training import Scheduler, Stateful
from weightbank.training import epochs as training_epochs
from weightbank.types import Flat

CHECKPOINT = "checkpoint.safetensors"


def record(
    task: Task,
    optimizer: torch.optim.Optimizer,
    moments: Moments | Mapping[str, Moments],
    *,
    epochs: int,
    directory: str | Path | None = None,
    every: int = 1,
    skip_epochs: int = 0,
    scheduler: Scheduler | None = None,
    timings: Timings | None = None,
    checkpoint_seconds: float = 60.0,
    log: Callable[[EpochRecord], Any] | None = None,
) -> float:
    """Train for `epochs` and give the weights after every `every`-th minibatch of an epoch to `moments`.

    As published (Wood et al., arXiv 2202.10522), the count of minibatches restarts with each epoch: with every=r the
    iterates are those after minibatches r, 2r, ... of each. Unlike there, the untrained weights are not recorded.

    Called again with the same arguments after a stop or a kill, with `directory` and moments on the same logs, it goes
    on from the last checkpoint and ends with the same bits, rows included, as a run that was never stopped: rows that
    are there already are checked as their iterates come again, not written again. Before the first checkpoint that
    means from the start, so the model must begin with the same weights and the same random state.

    Args:
        task: the model with its data; it ends up with the last weights.
        optimizer: over the model's parameters.
        moments: what takes the iterates; several, by name, take the same ones.
        epochs: in all, those before recording included.
        directory: where `checkpoint.safetensors` is kept; None keeps no checkpoint.
        every: r, record every r-th minibatch of an epoch.
        skip_epochs: train so many epochs before recording starts.
        scheduler: of the learning rate, stepped after each epoch; constant if there is none.
        timings: takes "epoch 0 time (s)" and so on.
        checkpoint_seconds: the longest time between two checkpoints.
        log: takes the mean training loss of each epoch and more, such as a `weightbank.logs.TrainingLog`.

    Returns the seconds of training in all, those before a stop included.

    Raises `ResumeError` when a resumed run does not repeat what was recorded, `DivergedError`, `DataError`; whatever is
    raised, everything recorded so far is kept, and Ctrl-C leaves a checkpoint.
    """
    if every < 1 or skip_epochs < 0 or epochs <= skip_epochs:
        raise DataError(
            f"every={every}, skip_epochs={skip_epochs}, epochs={epochs}; wanted every >= 1 and at least one epoch to "
            "record after those skipped"
        )
    takers = {"moments": moments} if isinstance(moments, Moments) else dict(moments)
    checkpoint = None if directory is None else Path(directory) / CHECKPOINT
    pace = _Pace(list(takers.values()), every, skip_epochs)
    if checkpoint is None or not checkpoint.exists():
        for taker in takers.values():  # rows without a checkpoint: the run starts anew and checks them
            taker.load_state_dict(Moments(task.layout).state_dict())
    stateful: dict[str, Stateful] = {"pace": pace, **takers}
    run = training_epochs(
        task,
        optimizer,
        count=epochs,
        each_step=pace.step,
        scheduler=scheduler,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        stateful=stateful,
        log=log,
    )
    try:
        for epoch in run:
            seconds = pace.next_epoch()
            if timings is not None:
                timings.put(f"epoch {epoch} time (s)", seconds)
    finally:
        for taker in takers.values():
            taker.flush()
    return pace.total


def last_weights(task: Task, directory: str | Path) -> Flat | None:
    """The weights θ, shape (P,), in the checkpoint that `record` left in a directory; None if there is none."""
    path = Path(directory) / CHECKPOINT
    if not path.exists():
        return None
    with ArrayFile(path) as file:
        return task.layout.ravel({name: file.read(f"state.model.{name}") for name in task.layout.names})


class _Pace:
    """Which minibatches are recorded, and the time epochs take; saved with the checkpoint."""

    def __init__(self, takers: list[Moments], every: int, skip_epochs: int) -> None:
        self._takers, self._every, self._skip = takers, every, skip_epochs
        self._epoch = self._batch = 0
        self._before = 0.0  # seconds of this epoch before the process started
        self._past = 0.0  # seconds of finished epochs
        self._start = time.perf_counter()

    def step(self, theta: Flat, *, step: int) -> None:
        self._batch += 1
        if self._epoch >= self._skip and self._batch % self._every == 0:
            for taker in self._takers:
                taker.update(theta, step=step)

    def next_epoch(self) -> float:
        """The seconds of the epoch that ended."""
        seconds = self._elapsed()
        self._epoch, self._batch = self._epoch + 1, 0
        self._past, self._before, self._start = self._past + seconds, 0.0, time.perf_counter()
        return seconds

    @property
    def total(self) -> float:
        return self._past + self._elapsed() if self._batch else self._past

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch, "past": self._past, "before": self._elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._past, self._before = float(state["past"]), float(state["before"])
        self._start = time.perf_counter()

    def _elapsed(self) -> float:
        return self._before + time.perf_counter() - self._start

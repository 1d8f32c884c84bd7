"""How long passes over a model take, from one measured batch."""

import time
from collections.abc import Callable, Sized
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from weightbank.task import Task, TensorBatches
from weightbank.types import Batches

BATCH = 32
"""Examples timed, if nobody says how many."""

REPEATS, DRAWS = 3, 30


def times_of(task: Task, batch_size: int) -> dict[str, Any]:
    """Seconds of a forward pass, and of one with its backward pass, over a batch; and of whole passes over the data.

    The first pass, which warms up, is not counted; of three more it is the median. The model stays as it is: passes
    are those of evaluation mode. Raises `DataError` for an empty split.
    """
    x, y = next(iter(task.batches("train")))
    if isinstance(x, torch.Tensor):
        x, y = x[:batch_size], y[:batch_size]
    theta = task.theta()

    def forward() -> None:
        with torch.no_grad():
            task.predict(theta, x)

    def backward() -> None:
        free = theta.clone().requires_grad_()
        torch.autograd.grad(task.loss(task.predict(free, x), y), free)

    count, ahead, both = len(y), _seconds(forward), _seconds(backward)
    found: dict[str, Any] = {"batch": count, "forward_seconds": ahead, "forward_and_backward_seconds": both}
    train, test = _examples(task.train, count), _examples(task.test, count)
    if train is not None:
        found |= {"training_examples": train, "training_epoch_seconds": both * train / count}
    if test is not None:
        found |= {"test_examples": test, "test_pass_seconds": ahead * test / count}
        found["test_pass_of_30_draws_seconds"] = DRAWS * ahead * test / count
    return found


def _seconds(action: Callable[[], None]) -> float:
    spent = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return median(spent[1:])


def _examples(source: Batches, batch: int) -> int | None:
    """How many examples a split has, as far as it can be known without a pass."""
    if isinstance(source, TensorBatches):
        return len(source.x)
    if isinstance(source, DataLoader) and isinstance(source.dataset, Sized):
        return len(source.dataset)
    return len(source) * batch if isinstance(source, Sized) else None

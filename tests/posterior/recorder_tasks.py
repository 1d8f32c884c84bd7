"""A small task that can be run in this process or in a child that is killed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightbank.distributions import Keep, Moments
from weightbank.posterior import record
from weightbank.store import RowLog
from weightbank.task import Task, TensorBatches

BATCHES = 6


def made(after: Callable[[int], None] | None = None) -> tuple[Task, torch.optim.SGD]:
    """A classifier with dropout on random data, six batches an epoch; `after(n)` is called with each loss."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(90, 8, generator=generator)
    y = torch.randint(0, 3, (90,), generator=generator)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    count = 0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if after is not None:
            after(count)
        return F.cross_entropy(output, target)

    train = TensorBatches(x, y, 15, shuffle=True, generator=torch.Generator().manual_seed(2))
    task = Task("toy", model, loss, train, (x, y))
    return task, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def opened(task: Task, directory: Path, format: str, keep: Keep | None = None) -> Moments:
    return Moments(task.layout, rows=RowLog(directory / "rows", format=format), keep=keep)


def main(directory: str, format: str, epochs: str) -> None:
    """The child: train, say each step's number, be killed at any moment."""

    def slowly(number: int) -> None:
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        time.sleep(0.01)

    task, optimizer = made(slowly)
    moments = opened(task, Path(directory), format)
    record(task, optimizer, moments, epochs=int(epochs), directory=directory, checkpoint_seconds=0.05)
    moments.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

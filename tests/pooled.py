"""Small networks of the embedded digits, trained once per process, for tests of pools."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import weightbank as wb
from weightbank.data import digits
from weightbank.paging import Pool
from weightbank.zoo import mlp

CAPACITY = 5_200
"""Positions for the three networks of `tasks`, which have 6,100 weights: 1.2 times as many."""


@cache
def tasks() -> tuple[wb.Task, ...]:
    """Three trained networks: two of linear layers, one of convolutions with BatchNorm. Nobody may change them."""
    data = digits()
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, model in {"one": mlp(64, 24, 10), "two": mlp(64, 20, 16, 10), "conv": tiny()}.items():
            task = wb.Task(name, model, F.cross_entropy, data.train, data.test, batch_size=64)
            for _ in wb.epochs(task, torch.optim.Adam(model.parameters(), lr=5e-3), count=6):
                pass
            found.append(task)
    return tuple(found)


def tiny() -> nn.Sequential:
    """3,842 weights and six buffers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@cache
def importances() -> dict[str, Tensor]:
    """The Fisher information of each."""
    return {task.name: wb.curvature.fisher(task, images=300) for task in tasks()}


def filled(capacity: str | int = CAPACITY, *, dtype: str = "fp32", reserve: int = 0, **options: object) -> Pool:
    """A pool with all three."""
    pool = Pool(capacity, dtype=dtype, reserve=reserve)
    for task in tasks():
        pool.add(task, importance=importances()[task.name], **options)  # type: ignore[arg-type]
    return pool


def examples(count: int) -> tuple[Tensor, Tensor]:
    """Some test digits."""
    x, y = digits().test
    return x[:count], y[:count]


def accuracy(pool: Pool, name: str) -> float:
    """Of one network on the test digits."""
    x, y = digits().test
    with pool.use(name) as net, torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def same(one: Pool, other: Pool) -> bool:
    """Whether two pools hold the same bits, for the same networks."""
    equal = torch.equal(one.generation.owner.raw, other.generation.owner.raw) and list(one) == list(other)
    return equal and all(
        torch.equal(mine[key], theirs[key])
        for name in one
        for mine, theirs in [(one.materialise(name), other.materialise(name))]
        for key in mine
    )

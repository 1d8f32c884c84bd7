"""A pool on disk survives kill -9 in the middle of a save: it is the old one or the new one, and whole."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import weightbank as wb
from killing import Children, Tell
from weightbank.paging import Pool


def numbered(number: int) -> Pool:
    """A pool of 100,000 positions whose content is known from its generation."""
    x = torch.zeros(4, 10)
    task = wb.Task("line", torch.nn.Linear(10, 9_000), torch.nn.functional.mse_loss, (x, x), (x, x))
    torch.nn.init.constant_(task.model.weight, float(number))
    torch.nn.init.constant_(task.model.bias, -float(number))
    pool = Pool(100_000)
    pool.add(task, importance=torch.ones(task.layout.size))
    with pool.edit() as draft:
        draft.values.copy_(content(number))
    return pool


def content(number: int) -> torch.Tensor:
    return torch.arange(100_000.0) * (number + 1)


def save_for_ever(tell: Tell, where: str) -> None:
    """A child: save one generation after the other to one file, and tell which are whole."""
    pool, number = numbered(0), 0
    pool.save(where)
    tell(number)
    while True:
        number += 1
        with pool.edit() as draft:
            draft.values.copy_(content(number))
        pool.save(where)
        tell(number)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(__file__) as children:
        yield children


def kill_savers(children: Children, where: Path, kills: int) -> None:
    chance = random.Random(kills)
    for _ in range(kills):
        child = children.start("save_for_ever", str(where))
        for _ in range(chance.randrange(1, 5)):
            child.hear()
        time.sleep(chance.random() * 4e-3)  # somewhere in the next save, which takes about as long
        told = child.kill()
        pool = Pool.open(where)
        number = int(pool.generation.owner.values()[1]) - 1
        assert told <= number <= told + 1
        assert torch.equal(pool.generation.owner.values(), content(number))
        pool.save(where)  # what the dead left over is in nobody's way
        assert list(where.parent.iterdir()) == [where]


def test_a_pool_killed_while_it_is_saved_is_the_old_or_the_new_one(children: Children, tmp_path: Path) -> None:
    kill_savers(children, tmp_path / "pool.safetensors", kills=4)


@pytest.mark.slow
def test_many_kills(children: Children, tmp_path: Path) -> None:
    kill_savers(children, tmp_path / "pool.safetensors", kills=60)

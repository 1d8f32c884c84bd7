"""The published evaluation of sharing a memory (Neural Weight Virtualization, MobiSys 2020), for any networks.

Every experiment takes its networks as `Member`s and yields one flat row after another, for a table or a figure.
Accuracies are fractions of the test data; nothing is ever chosen by them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import torch

from weightbank.errors import DataError
from weightbank.evaluation import evaluate
from weightbank.formats import Format
from weightbank.paging.convert import convert
from weightbank.paging.place import How
from weightbank.paging.pool import Pool
from weightbank.paging.tune import Tuned, tune
from weightbank.task import Task
from weightbank.types import Flat

Row: TypeAlias = dict[str, str | int | float | bool | None]
Method: TypeAlias = Literal["tied", "joint", "sequential"]


@dataclass(frozen=True, eq=False)
class Member:
    """One network of an experiment: its task with its present weights, and how much each weight matters, shape (P,).

    held: True = its data are not here, so that it is neither trained nor tested but held at its weights.
    """

    task: Task
    importance: Flat
    held: bool = False

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @cached_property
    def theta(self) -> Flat:
        """Its weights as they came, shape (P,)."""
        return self.task.theta()

    @cached_property
    def alone(self) -> float | None:
        """Its accuracy on the test data in a memory of its own; None if it is held."""
        return None if self.held else accuracy(self.task, self.theta)


@dataclass(frozen=True)
class Setup:
    """How networks are put into one memory and tuned there.

    Attributes:
        capacity: of the pool, in weights or as a text of bytes; None is the size of the largest network, filled up to
            whole pages.
        dtype: what a position is stored as.
        placement: how networks are placed.
        page_size: weights per page, for placements in pages.
        steps: of tuning; for the penalty method per network, in all rounds.
        lr: the first learning rate.
        method: of tuning, see `tune`.
        hold: how strongly networks without data are held, or λ of the penalty method; None as in `tune`.
        rounds: of the method "joint".
        every: steps between two measurements; a tenth of all by default.
        seed: of places, data order and held-back data.
    """

    capacity: int | str | None = None
    dtype: torch.dtype | Format | str = torch.float32
    placement: How = "extents"
    page_size: int = 100
    steps: int = 1000
    lr: float = 1e-3
    method: Method = "tied"
    hold: float | None = None
    rounds: int = 20
    every: int | None = None
    seed: int = 0


def accuracy(task: Task, theta: Flat) -> float:
    """Of one weight vector on the test data, BatchNorm statistics as they are."""
    return float(evaluate(task, theta, 1, batch_norm="keep").accuracy.mean)


def fixed(members: Sequence[Member], setup: Setup) -> Setup:
    """The setup with the capacity that these networks need where it has none; DataError without a network."""
    if not members:
        raise DataError("no network came; wanted at least one")
    pages = math.ceil(max(member.task.layout.size for member in members) / setup.page_size)
    return replace(setup, capacity=setup.capacity or pages * setup.page_size)


def fitting(members: Sequence[Member], counts: Sequence[int]) -> list[int]:
    """Those counts that there are networks for, or all networks."""
    return [count for count in counts if 0 < count <= len(members)] or [len(members)]


def place(members: Sequence[Member], setup: Setup) -> tuple[Pool, float]:
    """A pool with all networks in it, not tuned, and the seconds it took to find their places."""
    setup = fixed(members, setup)
    assert setup.capacity is not None
    pool = Pool(setup.capacity, dtype=setup.dtype, seed=setup.seed)
    start = time.perf_counter()
    for member in members:
        pool.add(member.task, importance=member.importance, placement=setup.placement, page_size=setup.page_size)
    return pool, time.perf_counter() - start


def tune_all(pool: Pool, members: Sequence[Member], setup: Setup) -> Tuned:
    """Tune the networks that have data; whatever comes out is kept, also when somebody lost accuracy by it."""
    tasks = [member.task for member in members if not member.held]
    return tune(
        pool,
        tasks,
        steps=setup.steps,
        lr=setup.lr,
        method=setup.method,
        tolerance=math.inf,
        hold=setup.hold,
        anchors={member.name: member.theta for member in members if member.held},
        rounds=setup.rounds,
        every=setup.every,
        retries=0,
        seed=setup.seed,
    )


def share(members: Sequence[Member], setup: Setup, **columns: str | int | float) -> Iterator[Row]:
    """Place, tune and test some networks: one row each, which begins with `columns`.

    `alone`, `placed` and `tuned` are accuracies in a memory of its own, after sharing, and after tuning; None where the
    data are not here. `packing` is weights per position; times are in seconds.
    """
    pool, placing = place(members, setup)
    placed = {member.name: _tested(pool, member) for member in members}
    done = tune_all(pool, members, setup)
    report = pool.report()
    for member in members:
        yield {
            **columns,
            "network": member.name,
            "weights": member.task.layout.size,
            "held": member.held,
            "alone": member.alone,
            "placed": placed[member.name],
            "tuned": _tested(pool, member),
            "finite": bool(pool[member.name].mean().isfinite().all()),
            "packing": report.packing,
            "table_bytes": report.bytes_tables,
            "bytes": report.bytes_owner + report.bytes_rest + report.bytes_tables,
            "placing_seconds": placing,
            "tuning_seconds": done.seconds,
        }


def networks(members: Sequence[Member], setup: Setup, counts: Sequence[int] = (3, 5, 7, 9, 10)) -> Iterator[Row]:
    """The first 3, 5, 7, ... networks in one memory of one size; counts beyond their number are left out.

    Unless `setup` gives a capacity it is that of the largest network of all.
    """
    setup = fixed(members, setup)
    for count in fitting(members, counts):
        yield from share(members[:count], setup, networks=count)


def page_sizes(
    members: Sequence[Member], setup: Setup, sizes: Sequence[int] = (10, 100, 1_000, 10_000)
) -> Iterator[Row]:
    """Pages of 10, 100, ... weights; beside the accuracies the bytes of the page tables."""
    for size in sizes:
        how: How = "pages" if setup.placement == "extents" else setup.placement
        yield from share(members, replace(setup, placement=how, page_size=size), page_size=size)


def penalties(members: Sequence[Member], setup: Setup, weights: Sequence[float] = (0.1, 1, 10, 100)) -> Iterator[Row]:
    """The published method with penalties of λ = 0.1, 1, 10, 100, and tying, which has none."""
    for weight in weights:
        yield from share(members, replace(setup, method="joint", hold=weight), method="joint", penalty=weight)
    yield from share(members, replace(setup, method="tied"), method="tied", penalty=0.0)


def orders(members: Sequence[Member], setup: Setup) -> Iterator[Row]:
    """One network after the other, all by turns, all at once."""
    for method in ("sequential", "joint", "tied"):
        yield from share(members, replace(setup, method=method), method=method)


def formats(
    members: Sequence[Member], setup: Setup, names: Sequence[str] = ("bf16", "bfp8", "bfp6", "bfp4"), steps: int = 200
) -> Iterator[Row]:
    """One tuned pool converted to other formats: each weight rounded to nearest, and `steps` of rounding by example.

    `tuned`, `nearest` and `by_example` are accuracies; `moved` is how far predictions on held-back training data are
    from those before rounding, in loss per example.
    """
    pool, _ = place(members, setup)
    tune_all(pool, members, setup)
    tuned = {member.name: _tested(pool, member) for member in members}
    tasks = [member.task for member in members if not member.held]
    for name in names:
        nearest, small = pool.copy(), pool.copy()
        convert(nearest, name)
        done = convert(small, name, tasks, steps=steps, tolerance=math.inf, seed=setup.seed)
        for member in members:
            far = done.moved.get(member.name)
            yield {
                "format": name,
                "pool_bytes": done.bytes_after,
                "network": member.name,
                "alone": member.alone,
                "tuned": tuned[member.name],
                "nearest": _tested(nearest, member),
                "by_example": _tested(small, member),
                "moved_nearest": None if far is None else far[0],
                "moved_by_example": None if far is None else far[1],
                "seconds": done.seconds,
            }


def convergence(members: Sequence[Member], setup: Setup) -> Iterator[Row]:
    """The score of each network on held-back training data at every measurement while it is tuned."""
    pool, _ = place(members, setup)
    done = tune_all(pool, members, setup)
    for step, scores in done.history:
        for name, score in scores.items():
            yield {"step": step, "network": name, "metric": score.metric, "score": score.value}


def _tested(pool: Pool, member: Member) -> float | None:
    return None if member.held else accuracy(member.task, pool[member.name].mean())

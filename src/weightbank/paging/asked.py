"""What is asked of tuning and converting: whose tasks, what each network may lose, and which data judge it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from weightbank.errors import DataError, LayoutError
from weightbank.paging.commit import TOLERANCE
from weightbank.paging.tenant import Tenant
from weightbank.streams import Stream, split
from weightbank.task import Source, Task
from weightbank.types import Batches

Tasks: TypeAlias = Task | Sequence[Task] | Mapping[str, Task]
Judged: TypeAlias = Mapping[str, tuple[Stream, Batches]]


def named_tasks(tasks: Tasks) -> dict[str, Task]:
    """Tasks by the tenant they are for; `DataError` for none, or two of one name."""
    if isinstance(tasks, Task):
        tasks = [tasks]
    named = dict(tasks) if isinstance(tasks, Mapping) else {task.name: task for task in tasks}
    if not named or len(named) != len(tasks):
        raise DataError(f"{len(tasks)} tasks with {len(named)} different names came; wanted at least one, each its own")
    return named


def check_tenants(names: Iterable[str], tasks: Mapping[str, Task], tenants: Mapping[str, Tenant]) -> None:
    """Raise `LayoutError` unless each name is that of a tenant with a task."""
    for name in names:
        if name not in tenants or name not in tasks:
            raise LayoutError(f"'{name}' is no tenant with a task here; tenants: {', '.join(tenants)}")


def limits_of(tolerance: float | Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """What each network may lose; `DataError` for NaN, and for networks without a task."""
    given = tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(tasks, tolerance)
    limits = {name: float(given.get(name, TOLERANCE)) for name in tasks}
    for name, limit in [*given.items(), *limits.items()]:
        if name not in tasks or math.isnan(limit):
            raise DataError(f"a tolerance of {limit} for '{name}'; wanted numbers, for tenants with a task")
    return limits


def judged_of(tasks: Mapping[str, Task], seed: int, validation: Mapping[str, Source] | None) -> Judged:
    """For each network a stream of training data, and data to judge it by."""
    return {
        name: split(task, seed=seed + 1 + number, validation=(validation or {}).get(name))
        for number, (name, task) in enumerate(tasks.items())
    }

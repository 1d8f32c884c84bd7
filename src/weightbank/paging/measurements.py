"""What sharing a memory takes: time to place and to switch, bytes, and what pairs of networks cost each other.

The second half of the published evaluation (Neural Weight Virtualization, MobiSys 2020); see `experiments`.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

from weightbank.paging.allocated import allocated
from weightbank.paging.experiments import Member, Row, Setup, fitting, fixed, place
from weightbank.paging.pages import Policy, merge_loss, pair_cost, place_pages
from weightbank.paging.pool import Pool
from weightbank.store.arrays import ArrayFile, save_arrays


def matching(
    members: Sequence[Member],
    setup: Setup,
    sizes: Sequence[int] = (100, 1_000, 10_000),
    policies: Sequence[Policy] = get_args(Policy),
) -> Iterator[Row]:
    """How long each policy takes to place all networks in pages of 100, 1,000, ... weights, and what that costs them.

    `merge_loss` is twice the quadratic estimate of what all losses rise by, `pair_cost` the published measure. Both
    are of the importances as they came.
    """
    weights = [member.theta for member in members]
    importances = [member.importance for member in members]
    for size in sizes:
        pages = math.ceil(max(len(theta) for theta in weights) / size)
        for policy in policies:
            generator = torch.Generator().manual_seed(setup.seed)
            start = time.perf_counter()
            tables = place_pages(weights, importances, pages=pages, page_size=size, policy=policy, generator=generator)
            seconds = time.perf_counter() - start
            yield {
                "page_size": size,
                "pages": pages,
                "policy": policy,
                "seconds": seconds,
                "merge_loss": merge_loss(weights, importances, tables, pages=pages, page_size=size),
                "pair_cost": pair_cost(weights, importances, tables, pages=pages, page_size=size),
            }


def switching(members: Sequence[Member], setup: Setup, switches: int = 300) -> Iterator[Row]:
    """Microseconds to get at a network: the first time (warm-up) apart from random switches after it.

    By `pool.use`, by gathering its weights out of the pool, and by reading a .safetensors file into a module.
    """
    pool, _ = place(members, setup)
    modules = {member.name: copy.deepcopy(member.task.model) for member in members}
    layouts = {member.name: member.task.layout for member in members}

    def use(name: str) -> None:
        with pool.use(name):
            pass

    with TemporaryDirectory() as folder:
        files = {member.name: Path(folder) / f"{number}.safetensors" for number, member in enumerate(members)}
        for member in members:
            save_arrays(files[member.name], {"theta": member.theta})

        def read(name: str) -> None:
            with ArrayFile(files[name]) as file:
                layouts[name].assign(modules[name], file.read("theta"))

        ways: dict[str, Callable[[str], object]] = {"use": use, "gather": pool.generation.theta, "file": read}
        generator = torch.Generator().manual_seed(setup.seed)
        order = torch.randint(len(members), (switches,), generator=generator).tolist()
        for way, act in ways.items():
            first = {member.name: _microseconds(act, member.name) for member in members}
            steady: dict[str, list[float]] = {member.name: [] for member in members}
            for number in order:
                steady[members[number].name].append(_microseconds(act, members[number].name))
            for member in members:
                times = torch.tensor(steady[member.name] or [math.nan], dtype=torch.float64)
                yield {
                    "way": way,
                    "network": member.name,
                    "weights": member.task.layout.size,
                    "first_us": first[member.name],
                    "median_us": float(times.median()),
                    "slowest_us": float(times.max()),
                    "switches": len(steady[member.name]),
                }


def memory(members: Sequence[Member], setup: Setup, counts: Sequence[int] = (3, 5, 7, 9, 10)) -> Iterator[Row]:
    """Bytes of networks in one memory and apart: computed, and as the C library's allocator counts them.

    Held by a pool that was opened from a file for serving, and by ordinary copies of the modules. Python's own objects
    are not counted; `*_held` is None where the allocator is not glibc's. Unless `setup` gives a capacity it is that of
    the largest network of all.
    """
    setup = fixed(members, setup)
    for count in fitting(members, counts):
        some = members[:count]
        pool, _ = place(some, setup)
        report = pool.report()
        with TemporaryDirectory() as folder:
            pool.save(Path(folder) / "pool.safetensors", importance=False)
            before = allocated()
            served = Pool.open(
                Path(folder) / "pool.safetensors", {member.name: member.task.model for member in some}, mapped=False
            )
            for member in some:
                with served.use(member.name):
                    pass
            between = allocated()
            modules = [copy.deepcopy(member.task.model) for member in some]
            after = allocated()
        yield {
            "networks": count,
            "weights": report.weights,
            "pool_computed": report.bytes_owner + report.bytes_rest + report.bytes_tables,
            "pool_held": None if before is None or between is None else between - before,
            "apart_computed": report.bytes_apart,
            "apart_held": None if between is None or after is None else after - between,
        }
        del served, modules


def sharing(members: Sequence[Member], setup: Setup) -> Iterator[Row]:
    """For each pair of networks how many weights share a position, and Σ FG / (F + G) (w - v)² over them.

    Importances F and G have mean one in each network.
    """
    pool, _ = place(members, setup)
    tenants = pool.generation.tenants
    places, wanted = {}, {}
    for member in members:
        tenant = tenants[member.name]
        places[member.name] = tenant.placement.gather(torch.arange(pool.size, dtype=torch.float64)).long()
        precision, value = torch.zeros(2, pool.size, dtype=torch.float64)
        precision[places[member.name]] = member.importance.double() / max(float(member.importance.mean()), 1e-30)
        value[places[member.name]] = member.theta.double()
        wanted[member.name] = precision, value
    for one, other in combinations(members, 2):
        common = torch.isin(places[one.name], places[other.name])
        at = places[one.name][common]
        (f, w), (g, v) = ((part[at] for part in wanted[member.name]) for member in (one, other))
        cost = torch.where(f + g > 0, f * g / (f + g), 0.0) * (w - v) ** 2
        yield {"first": one.name, "second": other.name, "shared": len(at), "cost": float(cost.sum())}


def importances(members: Sequence[Member], points: int = 60) -> Iterator[Row]:
    """Which part of a network's importance its most important weights have, from one weight to all, `points` times."""
    for member in members:
        ranked = member.importance.double().sort(descending=True).values.cumsum(0)
        total = float(ranked[-1]) or 1.0
        for count in sorted(
            set(torch.logspace(0, math.log10(len(ranked)), points, dtype=torch.float64).round().tolist())
        ):
            part = float(ranked[int(count) - 1]) / total
            yield {"network": member.name, "weights": int(count) / len(ranked), "importance": part}


def _microseconds(act: Callable[[str], object], name: str) -> float:
    start = time.perf_counter_ns()
    act(name)
    return (time.perf_counter_ns() - start) / 1000

"""What it takes to get at a network: a look-up in a pool, a gather out of one, and files of the network's own.

    python benchmarks/pool_serving.py [--weights 65000] [--threads 8] [--seconds 5]

Networks of three linear layers, twelve of them in a pool of 1.5 networks. Microseconds of one switch: the first ones
(warm-up) apart from the median and the 99th percentile of 2,000 random ones; the same with one example run, as networks
in pages and codes are read while they run. Then threads that switch and compute while another thread edits the pool,
with the longest wait for a switch.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from measure import table
from safetensors.torch import load_file, save_file

import weightbank as wb
from weightbank.paging import Pool
from weightbank.zoo import mlp

NETWORKS, SWITCHES = 12, 2_000


def network(seed: int, weights: int) -> wb.Task:
    width = round((-274 + (274**2 + 4 * weights) ** 0.5) / 2)  # 256 w + w² + 10 w + biases
    torch.manual_seed(seed)
    x = torch.randn(64, 256)
    y = torch.randint(10, (64,))
    return wb.Task(f"network {seed}", mlp(256, width, width, 10), F.cross_entropy, (x, y), (x, y))


def pool_of(tasks: list[wb.Task], placement: str, dtype: str = "fp32", staging: int | None = 0) -> Pool:
    pool = Pool(round(1.5 * tasks[0].layout.size), dtype=dtype, staging=staging)
    for task in tasks:
        pool.add(task, importance=torch.ones(task.layout.size), placement=placement, page_size=128)  # type: ignore[arg-type]
    return pool


def microseconds(act: Callable[[str], object], names: list[str]) -> tuple[float, float, float]:
    """The slowest first use of a network; median and 99th percentile of random uses after it."""
    first = []
    for name in names:
        start = time.perf_counter_ns()
        act(name)
        first.append(time.perf_counter_ns() - start)
    chance = random.Random(0)
    later = []
    for _ in range(SWITCHES):
        name = chance.choice(names)
        start = time.perf_counter_ns()
        act(name)
        later.append(time.perf_counter_ns() - start)
    return max(first) / 1e3, float(np.median(later)) / 1e3, float(np.quantile(later, 0.99)) / 1e3


def switch(tasks: list[wb.Task], folder: Path) -> list[tuple[str, ...]]:
    names = [task.name for task in tasks]
    models = {task.name: task.model for task in tasks}
    extents, pages, codes = pool_of(tasks, "extents"), pool_of(tasks, "pages"), pool_of(tasks, "extents", "bfp8")
    copies = pool_of(tasks, "pages", staging=None)
    x = torch.randn(1, 256)
    out = torch.empty(tasks[0].layout.size)
    placements = {name: tenant.placement for name, tenant in pages.generation.tenants.items()}
    memory = pages.generation.owner.plain
    for task in tasks:
        save_file(task.model.state_dict(), folder / f"{task.name}.safetensors")
        torch.save(task.model.state_dict(), folder / f"{task.name}.pt")

    def use(pool: Pool) -> Callable[[str], object]:
        def act(name: str) -> None:
            with pool.use(name):
                pass

        return act

    def run(pool: Pool) -> Callable[[str], object]:
        def act(name: str) -> None:
            with torch.no_grad(), pool.use(name) as net:
                net(x)

        return act

    def read(name: str) -> None:
        models[name].load_state_dict(load_file(folder / f"{name}.safetensors"))

    def unpickle(name: str) -> None:
        models[name].load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))

    ways = {
        "use, extents": use(extents),
        "use, pages or codes": use(pages),
        "use, pages gathered before": use(copies),
        "gather of 128-weight pages": lambda name: placements[name].gather(memory, out),
        "safetensors + load_state_dict": read,
        "torch.load + load_state_dict": unpickle,
        "use and run one example, extents": run(extents),
        "the same, pages read layer by layer": run(pages),
        "the same, pages gathered before": run(copies),
        "the same, 8-bit codes layer by layer": run(codes),
    }
    rows = [("way", "first", "median", "99 %")]
    for way, act in ways.items():
        rows.append((way, *(f"{value:,.1f}" for value in microseconds(act, names))))
    return rows


def under_load(tasks: list[wb.Task], threads: int, seconds: float) -> str:
    pool = pool_of(tasks, "extents")
    stop = threading.Event()
    waits: list[list[float]] = [[] for _ in range(threads)]
    x = torch.randn(1, 256)

    def read(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            name = chance.choice(tasks).name
            start = time.perf_counter()
            lease = pool.use(name)
            waits[number].append(time.perf_counter() - start)
            with lease as net:
                net(x)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
    for reader in readers:
        reader.start()
    edits, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with pool.edit() as draft:
            draft.values.mul_(0.999)
        edits += 1
    stop.set()
    for reader in readers:
        reader.join()
    together = np.array([wait for own in waits for wait in own])
    return (
        f"{threads} threads for {seconds:g} s: {len(together):,} switches with a forward pass, {edits:,} new "
        f"generations; a switch took {np.median(together) * 1e6:.1f} microseconds (median), "
        f"{np.quantile(together, 0.999) * 1e6:.0f} (99.9 %, threads take turns at one interpreter)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=65_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [network(seed, chosen.weights) for seed in range(NETWORKS)]
    with tempfile.TemporaryDirectory() as folder:
        rows = switch(tasks, Path(folder))
    table(f"microseconds to get at one of {NETWORKS} networks of {tasks[0].layout.size:,} weights", rows)
    print(under_load(tasks, chosen.threads, chosen.seconds))


if __name__ == "__main__":
    main()

"""Where pages stand: what the original's placement, a random one and ours lose, and how long they take.

    python benchmarks/page_matching.py --data /folder/with/the/five/npz

Five trained networks of 268,692 weights (mnist, gsc, gtsrb, cifar10, svhn: `flat_weight` and `flat_fisher` in .npz
files) share about 66,500. The merge loss is the sum of F (w - w̄)² over all weights; one thread.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from measure import table

from weightbank.paging.cost import offset_cost, sharing_cost
from weightbank.paging.extents import place_extents
from weightbank.paging.matching import exact, greedy, promising
from weightbank.paging.pages import merge_loss, pair_cost, place_pages
from weightbank.paging.statistics import Shared

NETWORKS = ("mnist", "gsc", "gtsrb", "cifar10", "svhn")


def load(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor], list[list[int]]]:
    weights, fishers, sizes = [], [], []
    for name in NETWORKS:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
            weights.append(torch.from_numpy(stored["flat_weight"]))
            fishers.append(torch.from_numpy(stored["flat_fisher"]))
            sizes.append([int(np.prod([int(n) for n in shape.split(",")])) for shape in stored["shapes"]])
    return weights, fishers, sizes


def timed(work, *given, **options) -> tuple:
    """What `work` returns, and the seconds of this process it took."""
    start = time.process_time()
    result = work(*given, **options)
    return result, time.process_time() - start


def by_page_size(weights: list, fishers: list, sizes: list[int], seeds: int) -> None:
    rows = [("P", "pages", "placement", "merge loss", "times less than random", "pair cost", "seconds")]
    for size in sizes:
        pages = max(-(-len(w) // size) for w in weights)
        share = {"pages": pages, "page_size": size}
        found = {}
        for policy in ("random", "published", "pages"):
            losses, costs, seconds = [], [], []
            for seed in range(1 if policy == "pages" else seeds):
                generator = torch.Generator().manual_seed(seed)
                how = {"policy": policy, "generator": generator}
                tables, taken = timed(place_pages, weights, fishers, **share, **how)
                losses.append(merge_loss(weights, fishers, tables, **share))
                costs.append(pair_cost(weights, fishers, tables, **share))
                seconds.append(taken)
            found[policy] = float(np.mean(losses))
            spread = f" ({min(losses):.3g}..{max(losses):.3g})" if len(losses) > 1 else ""
            gain = f"{found['random'] / found[policy]:.1f}"
            cost, second = f"{np.mean(costs):.1f}", f"{np.mean(seconds):.2f}"
            rows.append((str(size), str(pages), policy, f"{found[policy]:.4g}{spread}", gain, cost, second))
    table(f"five networks on shared pages; random and published: mean and range of {seeds} seeds", rows)


def as_extents(weights: list, fishers: list, parts: list, capacity: int) -> None:
    rows = [("evaluations", "merge loss", "seconds for five networks")]
    for evaluations in (1, 300, 3000):
        generator = torch.Generator().manual_seed(0)
        shared, lost, seconds = Shared.empty(capacity), 0.0, 0.0
        for theta, fisher, sizes in zip(weights, fishers, parts, strict=True):
            tensors, importances = theta.split(sizes), fisher.split(sizes)
            how = {"evaluations": evaluations, "generator": generator}
            offsets, taken = timed(place_extents, tensors, importances, shared, **how)
            seconds += taken
            mean = shared.mean()
            for w, f, o in zip(tensors, importances, offsets, strict=True):
                there = slice(o, o + len(w))
                lost += float(offset_cost(f, w, shared.precision[there], mean[there], 1))
            for w, f, o in zip(tensors, importances, offsets, strict=True):
                shared.add(slice(o, o + len(w)), w, f)
        rows.append((str(evaluations), f"{lost:.4g}", f"{seconds:.2f}"))
    table(f"the same as contiguous runs (views, no gather) in {capacity:,} positions", rows)


def kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [("kernel", "milliseconds", "nanoseconds per element")]
    for pages, size in ((665, 100), (1330, 50), (6648, 10)):
        f, w, g, v = torch.rand(4, pages, size, generator=generator)
        taken = min(timed(sharing_cost, f, w, g, v)[1] for _ in range(4))
        label = f"{pages} x {pages} pages of {size}"
        rows.append((label, f"{taken * 1e3:.0f}", f"{taken / (pages * pages * size) * 1e9:.2f}"))
    f, w = torch.rand(2, 41_000, generator=generator)
    g, v = torch.rand(2, 70_000, generator=generator)
    taken = min(timed(offset_cost, f, w, g, v, 16)[1] for _ in range(4))
    count = (70_000 - 41_000) // 16 + 1
    label = f"41,000 weights at {count:,} offsets"
    rows.append((label, f"{taken * 1e3:.0f}", f"{taken / (count * 41_000) * 1e9:.2f}"))
    table("the cost F G / (F + G) (w - v)²", rows)


def solvers(weights: list, fishers: list) -> None:
    """The last network on the others at random, P = 20: what each way to match loses and takes."""
    size, pages = 20, 3324
    tables = place_pages(weights[:4], fishers[:4], pages=pages, page_size=size, policy="random")
    shared = Shared.empty(pages * size)
    for w, f, pages_of in zip(weights, fishers, tables, strict=False):
        where = (pages_of[:, None] * size + torch.arange(size)).view(-1)[: len(w)]
        shared.add(where, w, f)
    f, w = (x[4][: len(x[4]) // size * size].view(-1, size) for x in (fishers, weights))
    order = f.sum(1).argsort(descending=True)
    cost = sharing_cost(f[order], w[order], shared.precision.view(-1, size), shared.mean().view(-1, size))

    def costs(some: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return cost[some][:, columns]

    rows = [("solver", "cost", "seconds")]

    def loss(chosen: torch.Tensor) -> str:
        return f"{float(cost.double()[torch.arange(len(cost)), chosen].sum()):.5g}"

    start, taken = timed(greedy, costs, *cost.shape)
    rows.append(("greedy", loss(start), f"{taken:.2f}"))
    for call in (1, 2, 3):
        start, taken = timed(promising, costs, *cost.shape, start=start)
        rows.append((f"promising exchanges, call {call}", loss(start), f"{taken:.2f}"))
    best, taken = timed(exact, cost)
    rows.append(("exact", loss(best), f"{taken:.2f}"))
    table(f"svhn on the other four placed at random: {len(cost)} pages of {size} on {pages}", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz, gsc.npz, ...")
    parser.add_argument("--page-sizes", type=int, nargs="+", default=[10, 20, 50, 100, 500, 1000, 10_000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--capacity", type=int, default=70_000, help="of the pool of contiguous runs")
    chosen = parser.parse_args()
    weights, fishers, parts = load(chosen.data)
    place_pages([torch.ones(8)] * 2, [torch.ones(8)] * 2, pages=2, page_size=4)  # compile
    place_extents([torch.ones(8)], [torch.ones(8)], Shared.empty(64), generator=torch.Generator())
    kernels()
    as_extents(weights, fishers, parts, chosen.capacity)
    solvers(weights, fishers)
    by_page_size(weights, fishers, chosen.page_sizes, chosen.seeds)


if __name__ == "__main__":
    main()

"""Real networks with real data in one small memory: three at 2.3 weights a position, ten in the memory of the largest.

    python benchmarks/pool_networks.py --data FOLDER --fashion FOLDER [--part three|ten] [--quick]

FOLDER has mnist/, cifar10/, gtsrb/, spoken_digits/ and pages/ (published page networks as .npz); the networks for
traffic signs and spoken digits are trained here once and kept in --cache. With --quick a few steps only, to see that it
all runs. Test data are looked at when everything is done.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
from measure import table

from weightbank.cli.pages_networks import Network, members_of
from weightbank.formats import format_of
from weightbank.paging import Pool
from weightbank.paging.experiments import Member, Setup, accuracy, place, tune_all
from weightbank.posterior.machine import peak_memory

THREE = ("mnist", "fmnist", "cifar10")
TEN = ("mnist", "fmnist", "cifar10", "spoken", "signs", "svhn", "us8k", "obs", "hhar", "esc10")
WITHOUT_FISHER = ("hhar", "esc10")
CAPACITY, LARGEST = 70_000, 72_100
CAPACITY_8_BIT = 70_400
"""Extents begin at blocks of 64 codes there, so the largest network takes 70,144 positions."""
HOLD = 10.0
"""Of networks without data: a tenth of the default, which keeps them closer and costs the others more."""
SECONDS = {"three": 200, "ten": 300}
"""What a run takes on a core that others use, too; about a third of that on a free one."""


def networks(names: tuple[str, ...], data: Path, fashion: Path) -> list[Network]:
    """Where each network's data and weights are; those without data are held at their weights."""
    sources = {
        "mnist": f"mnist:{data / 'mnist'}",
        "fmnist": f"mnist:{fashion}",
        "cifar10": f"parquet:{data / 'cifar10'}",
        "spoken": f"audio:{data / 'spoken_digits'}",
        "signs": f"parquet:{data / 'gtsrb'}",
    }
    found = []
    for name in names:
        if name in ("spoken", "signs"):
            found.append(Network(name, f"pages_{name}", sources[name], epochs=30 if name == "spoken" else 20))
            continue
        importance = None if name in sources else "equal" if name in WITHOUT_FISHER else "flat_fisher"
        weights = str(data / "pages" / f"{name}.npz")
        found.append(Network(name, f"pages_{name}", sources.get(name), weights, importance))
    return found


def tested(pool: Pool, members: list[Member]) -> dict[str, float]:
    return {m.name: 100 * accuracy(m.task, pool[m.name].mean()) for m in members if not m.held}


def moved(pool: Pool, members: list[Member]) -> dict[str, float]:
    """How far each held network stands from its own weights: Σ F (w - w₀)² over Σ F w₀²."""
    far = {}
    for member in members:
        if member.held:
            f, w = member.importance.double(), member.theta.double()
            change = pool[member.name].mean().double() - w
            far[member.name] = float((f * change**2).sum() / (f * w**2).sum())
    return far


def rounded(pool: Pool, members: list[Member], name: str = "bfp8") -> tuple[dict[str, float], int]:
    """Accuracies of the same pool with every weight in 8-bit blocks, and the bytes of such a pool."""
    format, values = format_of(name), pool.generation.owner.values()
    coarse = format.quantize(values)
    found = {}
    for member in members:
        if not member.held:
            theta = pool.generation.tenants[member.name].placement.gather(coarse)
            found[member.name] = 100 * accuracy(member.task, theta)
    return found, format.row_bytes(len(values))


def cells(found: dict[str, float], members: list[Member]) -> tuple[str, ...]:
    return tuple(f"{found[m.name]:.2f}" if m.name in found else "-" for m in members)


def three(members: list[Member], seeds: int, steps: int) -> None:
    alone = {m.name: 100 * (m.alone or math.nan) for m in members}
    heads = ("placement", "seed", "", *(m.name for m in members), "bytes", "seconds")
    rows = [
        heads,
        ("apart", "", "stand-alone", *cells(alone, members), str(4 * sum(len(m.theta) for m in members)), ""),
    ]
    for placement in ("extents", "pages"):
        for seed in range(seeds):
            setup = Setup(capacity=CAPACITY, placement=placement, steps=steps, seed=seed)
            pool, seconds = place(members, setup)
            where = (placement, str(seed))
            rows.append((*where, "placed", *cells(tested(pool, members), members), "", f"{seconds:.1f}"))
            done = tune_all(pool, members, setup)
            found = tested(pool, members)
            rows.append(
                (
                    *where,
                    f"{steps} steps",
                    *cells(found, members),
                    str(pool.report().bytes_owner),
                    f"{done.seconds:.0f}",
                )
            )
            coarse, size = rounded(pool, members)
            rows.append((*where, "rounded to bfp8", *cells(coarse, members), str(size), ""))
            low = min(found[m.name] - alone[m.name] for m in members)
            lost = max(found[m.name] - coarse[m.name] for m in members)
            print(
                f"{placement}, seed {seed}: worst tenant {low:+.2f} points, 8 bits lose {lost:.2f} at most", flush=True
            )
    setup = Setup(capacity=CAPACITY_8_BIT, dtype="bfp8", steps=steps)
    pool, _ = place(members, setup)
    done = tune_all(pool, members, setup)
    found = cells(tested(pool, members), members)
    rows.append(("extents", "0", "tuned in bfp8", *found, str(pool.report().bytes_owner), f"{done.seconds:.0f}"))
    table("three networks, 161,162 weights in 70,000 positions: test accuracy %", rows)


def ten(members: list[Member], steps: int) -> None:
    alone = {m.name: 100 * m.alone for m in members if m.alone is not None}
    rows = [("networks", "", *(m.name for m in members), "packing", "peak MB", "seconds")]
    rows.append(("", "stand-alone", *cells(alone, members), "", "", ""))
    for count in (3, 5, 10):
        some = members[:count]
        setup = Setup(capacity=LARGEST, steps=steps, hold=HOLD)
        pool, _ = place(some, setup)
        rows.append((str(count), "placed", *cells(tested(pool, some), members), "", "", ""))
        far = moved(pool, some)
        with peak_memory() as peak:
            done = tune_all(pool, some, setup)
        megabytes = "?" if peak.bytes is None else f"{peak.bytes / 1e6:.1f}"
        found = cells(tested(pool, some), members)
        packing = f"{pool.report().packing:.2f}"
        rows.append((str(count), f"{steps} steps", *found, packing, megabytes, f"{done.seconds:.0f}"))
        finite = all(bool(pool[m.name].mean().isfinite().all()) for m in some)
        print(f"{count} networks: all weights finite: {finite}", flush=True)
        for name, now in moved(pool, some).items():
            print(f"  {name} is held: importance-weighted change {far[name]:.3f} placed, {now:.3f} tuned", flush=True)
    table("networks in the memory of the largest, 72,100 positions: test accuracy %", rows)


def main() -> None:
    home = os.environ.get("WEIGHTBANK_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=home and Path(home), required=home is None)
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--cache", type=Path, default=Path("networks"))
    parser.add_argument("--part", choices=("three", "ten", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    steps, seeds = (20, 1) if chosen.quick else (chosen.steps, chosen.seeds)
    runs = {"three": 2 * seeds + 1, "ten": 3}
    for part in ("three", "ten"):
        if chosen.part in (part, "both"):
            estimate = runs[part] * SECONDS[part] * (steps + 100) / 1600
            print(f"{part}: about {estimate / 180:.0f} to {estimate / 60:.0f} minutes", flush=True)
            start = time.perf_counter()
            members = members_of(networks(THREE if part == "three" else TEN, chosen.data, chosen.fashion), chosen.cache)
            print(f"read, trained and weighed in {time.perf_counter() - start:.0f} s", flush=True)
            three(members, seeds, steps) if part == "three" else ten(members, steps)


if __name__ == "__main__":
    main()

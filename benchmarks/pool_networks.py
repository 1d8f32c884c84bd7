"""Real networks with real data in one small memory: three at 2.3 weights a position, ten in the memory of the largest.

The three also in 8 and 4 bits: converted from float32, each position to the nearest number or by example, and tuned in
8 bits from the start.

    python benchmarks/pool_networks.py --data FOLDER --fashion FOLDER [--part three|ten] [--quick]

FOLDER has mnist/, cifar10/, gtsrb/, spoken_digits/ and pages/ (published page networks as .npz); the networks for
traffic signs and spoken digits are trained here once and kept in --cache. With --quick a few steps only, to see that it
all runs. Test data are looked at when everything is done.
"""

import argparse
import itertools
import math
import os
import time
from pathlib import Path
from typing import TypeAlias

import torch
from measure import table
from torch import Tensor

from weightbank.cli.pages_networks import Network, members_of
from weightbank.evaluation import evaluate
from weightbank.paging import Pool, convert
from weightbank.paging.experiments import Member, Setup, place, tune_all
from weightbank.posterior.machine import peak_memory

THREE = ("mnist", "fmnist", "cifar10")
TEN = ("mnist", "fmnist", "cifar10", "spoken", "signs", "svhn", "us8k", "obs", "hhar", "esc10")
WITHOUT_FISHER = ("hhar", "esc10")
CAPACITY, LARGEST = 70_000, 72_100
CAPACITY_8_BIT = 70_144
"""As extents begin at blocks of 64 codes there, which the largest network fills all."""
HOLD = 10.0
"""Of networks without data: a tenth of the default, which would keep them closer and cost the others more."""
SECONDS = {"three": 300, "ten": 400}
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


Right: TypeAlias = dict[str, Tensor]
"""Which test examples each network has right."""


def tested(pool: Pool, members: list[Member]) -> Right:
    return {m.name: right(m, pool[m.name].mean()) for m in members if not m.held}


def right(member: Member, theta: Tensor) -> Tensor:
    found = evaluate(member.task, theta, 1, batch_norm="keep")
    return found.prediction.argmax(1) == found.targets


def moved(pool: Pool, members: list[Member]) -> dict[str, float]:
    """How far each held network stands from its own weights: Σ F (w - w₀)² over Σ F w₀²."""
    far = {}
    for member in members:
        if member.held:
            f, w = member.importance.double(), member.theta.double()
            change = pool[member.name].mean().double() - w
            far[member.name] = float((f * change**2).sum() / (f * w**2).sum())
    return far


def converted(pool: Pool, members: list[Member], format: str, steps: int) -> tuple[Pool, float]:
    """A copy of the pool in another format, whatever that costs, and the seconds it took."""
    small = pool.copy()
    done = convert(small, format, [member.task for member in members], steps=steps, tolerance=math.inf)
    return small, done.seconds


def cells(found: Right, members: list[Member]) -> tuple[str, ...]:
    return tuple(f"{percent(found[m.name]):.2f}" if m.name in found else "-" for m in members)


def percent(found: Tensor) -> float:
    return 100 * float(found.double().mean())


def against(found: Right, before: Right, members: list[Member]) -> tuple[str, ...]:
    """Differences in points, with the standard error over the test examples that both were asked."""
    texts = []
    for member in members:
        change = 100 * (found[member.name].double() - before[member.name].double())
        texts.append(f"{float(change.mean()):+.2f} ± {float(change.std()) / math.sqrt(len(change)):.2f}")
    return tuple(texts)


def three(members: list[Member], seeds: int, steps: int, rounding: int) -> None:
    names = [m.name for m in members]
    alone = {m.name: right(m, m.theta) for m in members}
    apart = sum(4 * len(m.theta) for m in members)
    heads = ("placement", "seed", "", *names, "bytes", "smaller in all", "seconds")
    rows = [heads, ("apart", "", "stand-alone", *cells(alone, members), f"{apart:,}", "", "")]

    def add(where: tuple[str, str], what: str, texts: tuple[str, ...], pool: Pool, seconds: float) -> None:
        report = pool.report()
        rows.append((*where, what, *texts, f"{report.bytes_owner:,}", f"{report.saving:.2f}", f"{seconds:.0f}"))

    worst = dict.fromkeys(("to nearest", "by example"), 0.0)
    plain = {}
    for placement, seed in itertools.product(("extents", "pages"), range(seeds)):
        setup = Setup(capacity=CAPACITY, placement=placement, steps=steps, seed=seed)
        pool, seconds = place(members, setup)
        where = (placement, str(seed))
        add(where, "placed", cells(tested(pool, members), members), pool, seconds)
        done = tune_all(pool, members, setup)
        found = plain[placement, seed] = tested(pool, members)
        add(where, f"{steps} steps", cells(found, members), pool, done.seconds)
        for format, way, count in (
            ("bfp8", "to nearest", 0),
            ("bfp8", "by example", rounding),
            ("bfp4", "to nearest", 0),
            ("bfp4", "by example", rounding),
        ):
            coarse, seconds = converted(pool, members, format, count)
            low = tested(coarse, members)
            add(where, f"{format} {way}", against(low, found, members), coarse, seconds)
            if format == "bfp8":
                worst[way] = max(worst[way], *(percent(found[name]) - percent(low[name]) for name in names))
        gain = min(percent(found[name]) - percent(alone[name]) for name in names)
        print(f"{placement}, seed {seed}: worst tenant {gain:+.2f} points against alone", flush=True)
    for seed in range(seeds):
        setup = Setup(capacity=CAPACITY_8_BIT, dtype="bfp8", steps=steps, seed=seed)
        pool, _ = place(members, setup)
        done = tune_all(pool, members, setup)
        low = tested(pool, members)
        add(("extents", str(seed)), "tuned in bfp8", against(low, plain["extents", seed], members), pool, done.seconds)
    table("three networks, 161,162 weights in 70,000 positions: test accuracy %, or points against float32", rows)
    print("in 8 bits a network loses at most " + ", ".join(f"{lost:.2f} {way}" for way, lost in worst.items()))


def ten(members: list[Member], steps: int) -> None:
    alone = {m.name: right(m, m.theta) for m in members if not m.held}
    rows = [("networks", "placement", "", *(m.name for m in members), "packing", "bytes in all", "peak MB", "seconds")]
    rows.append(("", "", "stand-alone", *cells(alone, members), "", "", "", ""))
    for count, placement, page_size in (
        (3, "extents", 100),
        (5, "extents", 100),
        (10, "extents", 100),
        (10, "pages", 100),
        (10, "pages", 10),
    ):
        some = members[:count]
        setup = Setup(capacity=LARGEST, placement=placement, page_size=page_size, steps=steps, hold=HOLD)
        pool, _ = place(some, setup)
        where = (str(count), placement if placement == "extents" else f"pages of {page_size}")
        rows.append((*where, "placed", *cells(tested(pool, some), members), "", "", "", ""))
        far = moved(pool, some)
        with peak_memory() as peak:
            done = tune_all(pool, some, setup)
        megabytes = "?" if peak.bytes is None else f"{peak.bytes / 1e6:.1f}"
        found, report = cells(tested(pool, some), members), pool.report()
        total = f"{report.bytes_owner + report.bytes_rest + report.bytes_tables:,}"
        rows.append(
            (*where, f"{steps} steps", *found, f"{report.packing:.2f}", total, megabytes, f"{done.seconds:.0f}")
        )
        finite = all(bool(pool[m.name].mean().isfinite().all()) for m in some)
        print(f"{count} networks, {where[1]}: all weights finite: {finite}", flush=True)
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
    steps, seeds, rounding = (20, 1, 8) if chosen.quick else (chosen.steps, chosen.seeds, 200)
    runs = {"three": 3 * seeds, "ten": 5}
    for part in ("three", "ten"):
        if chosen.part in (part, "both"):
            estimate = runs[part] * SECONDS[part] * (steps + 100) / 1600
            print(f"{part}: about {estimate / 180:.0f} to {estimate / 60:.0f} minutes", flush=True)
            start = time.perf_counter()
            members = members_of(networks(THREE if part == "three" else TEN, chosen.data, chosen.fashion), chosen.cache)
            print(f"read, trained and weighed in {time.perf_counter() - start:.0f} s", flush=True)
            three(members, seeds, steps, rounding) if part == "three" else ten(members, steps)


if __name__ == "__main__":
    main()

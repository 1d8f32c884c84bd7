"""Selective write-verify: published rankings, single cells, graded tolerances, reading first.

    python benchmarks/selective_write_verify.py --data mnist:FOLDER --seeds 0 1 2
    python benchmarks/selective_write_verify.py --data mnist:FOLDER --figure lenet.svg
    python benchmarks/selective_write_verify.py --data parquet:CIFAR10 --model small_cnn --figure cifar10.svg
    python benchmarks/selective_write_verify.py --data mnist:FOLDER --model transformer --figure transformer.svg

Weights of 8 bits over cells of 1 bit, sigma 0.3 and 0.1 level steps, verified 0.03. The first form prints tables of
LeNet on MNIST per sigma, over all training seeds: accuracy with two widths of error; accuracy at equal write cycles of
one simulated write-verify loop (redraw, tolerance 0.06), with paired differences to the published ranking at 10 %; with
--plans, plans and fresh chips to test them; costs on one core. Trained networks are kept in --cache. Three seeds and
one sigma take about six minutes on one core, and half a minute more for each network to be trained.

With --figure, accuracy against write cycles of every method, for the first seed and the first sigma, of any model of
the zoo (such as convnet_cifar10 or resnet18_cifar10), `small_cnn` or `transformer` (two blocks over the rows of an
image); the time it will take is said first, --examples and --chips shorten it. Finished points are kept in --cache, so
a run that was stopped goes on. The published recursion has no rule for attention and LayerNorm, so a transformer has
no such line.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import table
from torch import Tensor, nn
from torch.nn import functional as F

from weightbank import Task, TensorBatches, epochs
from weightbank.cim import (
    MENU,
    Cells,
    Device,
    WriteVerify,
    by_cell,
    by_significance,
    by_weight,
    compare,
    compensate,
    first_derivative,
    graded,
    mean_over_chips,
    rank,
    read_first,
    sweep,
    write_verify,
)
from weightbank.cim.montecarlo import Scorer
from weightbank.cim.policies import Programming
from weightbank.curvature import backprop, ggn_sampled
from weightbank.data import ImageData, load
from weightbank.errors import CurvatureError
from weightbank.evaluation import Estimate
from weightbank.report import accuracy_figure, save_figure
from weightbank.store.arrays import load_arrays, save_arrays
from weightbank.zoo import build, small_cnn

PUBLISHED, TENTH = "published, 10 %", 0.1
BEST = partial(read_first, tolerances=MENU[1:])


class Block(nn.Module):
    """Attention and two layers, each added to what came in, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.merge(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.layers(self.norm2(x))


class RowTransformer(nn.Module):
    """Reads an image row by row: two blocks over its rows, the mean of which tells the class."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        channels, height, across = shape
        self.embed = nn.Linear(channels * across, width)
        self.places = nn.Parameter(0.02 * torch.randn(height, width))
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads), nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.transpose(1, 2).flatten(2)) + self.places).mean(1))


def built(name: str, data: ImageData) -> nn.Module:
    if name == "transformer":
        return RowTransformer(data.shape, len(data.classes))
    if name == "small_cnn":
        return small_cnn(data.shape[0], data.shape[1], len(data.classes))
    return build("lenet_mnist" if name == "lenet" else name)


def trained(
    data: ImageData, seed: int, cache: Path, count: int, name: str = "lenet", examples: int | None = None
) -> Task:
    """A network, trained or from the cache; `examples` of the test data, in batches of 128."""
    torch.manual_seed(seed)
    model = built(name, data)
    test = tuple(part[:examples] for part in data.test)
    task = Task("LeNet" if name == "lenet" else name, model, F.cross_entropy, data.train, test, batch_size=128)
    path = cache / f"{name}_{seed}_{count}.safetensors"
    if path.exists():
        model.load_state_dict(load_arrays(path)[0])
        return task
    assert isinstance(task.train, TensorBatches)
    task.train.generator.manual_seed(seed)
    start = time.perf_counter()
    for epoch in epochs(task, torch.optim.Adam(model.parameters(), lr=1e-3), count=count):
        seconds = (time.perf_counter() - start) / (epoch + 1)
        say(f"{name}: epoch {epoch + 1} of {count} trained, {seconds:.0f} s each")
    save_arrays(path, model.state_dict())
    return task


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rankings(task: Task, cells: Cells) -> dict[str, torch.Tensor]:
    """Scores (curvatures) and orders (everything else) of the weights."""
    start = time.perf_counter()
    sampled = ggn_sampled(task, images=6_000)
    middle = time.perf_counter()
    published = backprop(task, images=6_000)
    print(
        f"6,000 images: ggn_sampled {middle - start:.1f} s, backprop {time.perf_counter() - middle:.1f} s",
        file=sys.stderr,
    )
    return {
        "random": torch.randperm(task.layout.size, generator=torch.Generator().manual_seed(0)),
        "magnitude": rank(cells.relative),
        "first derivative": rank(first_derivative(task) * cells.scale),
        "published": published,
        "sampled": sampled,
    }


def two_widths(task: Task, cells: Cells, scores: Mapping[str, torch.Tensor], passes: int) -> dict[tuple, Estimate]:
    found = {("none", 0.0): mean_over_chips(task, by_weight(cells, scores["sampled"])(0.0).law, passes=passes)}
    for name, score in scores.items():
        for budget in (0.01, 0.05, 0.1, 0.3):
            found[name, budget] = mean_over_chips(task, by_weight(cells, score)(budget).law, passes=passes)
    found["all", 1.0] = mean_over_chips(task, by_weight(cells, scores["sampled"])(1.0).law, passes=passes)
    return found


def one_loop(task: Task, cells: Cells, scores: Mapping[str, torch.Tensor], passes: int) -> dict:
    """All in one simulated loop: name -> (accuracy, difference to the published ranking at 10 %, reads per cell)."""
    loop, laws, reads = WriteVerify(), {}, {}

    def add(name: str, policy, score: torch.Tensor, budget: float) -> None:
        found = policy(cells, score, loop)(budget)
        laws[name], reads[name] = found.law, found.reads

    add(PUBLISHED, by_weight, scores["published"], TENTH)
    add("published, 1 %", by_weight, scores["published"], 0.01)
    for budget in (0.01, 0.05):
        for name, policy in (
            ("sampled, weights", by_weight),
            ("most significant cells", by_significance),
            ("cells", by_cell),
            ("graded cells", graded),
            ("read first", read_first),
            ("read first, graded", BEST),
            ("graded, 5 % compensated", partial(compensate, share=0.05)),
            ("graded, compensated", compensate),
        ):
            add(f"{name}, {100 * budget:g} %", policy, scores["sampled"], budget)
    add("compensated only", compensate, scores["sampled"], 0.0)
    add("all", by_weight, scores["sampled"], 1.0)
    found = compare(task, laws, passes=passes)
    return {name: (found.accuracy[name], found.difference[name], reads[name]) for name in laws}


def averaged(estimates: list[Estimate]) -> str:
    """Mean over training seeds; the error is that over chips."""
    mean = sum(estimate.mean for estimate in estimates) / len(estimates)
    stderr = math.sqrt(sum((estimate.stderr or 0.0) ** 2 for estimate in estimates)) / len(estimates)
    return f"{100 * mean:.2f} ± {100 * stderr:.2f}"


def curves(task: Task, device: Device, chosen: argparse.Namespace, path: Path) -> None:
    """Every method at every budget, as a table and a figure; what took how long."""
    cells, start = Cells.of(task, device), time.perf_counter()
    sampled = ggn_sampled(task, images=6_000)
    curved = time.perf_counter()
    ways = {
        "random": by_weight(cells, torch.randperm(task.layout.size, generator=torch.Generator().manual_seed(0))),
        "magnitude": by_weight(cells, rank(cells.relative)),
        "first derivative": by_weight(cells, rank(first_derivative(task) * cells.scale)),
    }
    try:
        ways["published"] = by_weight(cells, backprop(task, images=6_000))
    except CurvatureError as error:
        say(f"no published ranking: {error}")
    scored = time.perf_counter()
    ways |= {
        "weights": by_weight(cells, sampled),
        "top cells": by_significance(cells, sampled),
        "cells": by_cell(cells, sampled),
        "graded": graded(cells, sampled),
        "read first": BEST(cells, sampled),
        "compensate": compensate(cells, sampled),
    }
    if chosen.methods:
        ways = {name: ways[name] for name in chosen.methods}
    say(f"ggn_sampled {curved - start:.1f} s, the other rankings {scored - curved:.1f} s, 6,000 images each")
    seconds = timed(task, [way(budget) for way in ways.values() for budget in chosen.budgets]) * chosen.chips
    say(f"about {seconds / 60:.1f} minutes for {len(ways)} methods, {chosen.chips} chips each")
    found = sweep(task, ways, chosen.budgets, chips=chosen.chips, stderr=chosen.stderr, path=path)
    rows = {(row.method, row.budget): row for row in found.rows}
    head = ("method", *(f"{100 * budget:g} %" for budget in chosen.budgets), "reads at 3 %")
    body = []
    for name in found.methods:
        reads = f"{rows[name, 0.03].reads:.2f}" if (name, 0.03) in rows else ""
        body.append((name, *(averaged([rows[name, budget].accuracy]) for budget in chosen.budgets), reads))
    chips = max(row.accuracy.n for row in found.rows)
    title = f"{task.name}, sigma {device.sigma}: accuracy in %, exact {100 * found.clean:.2f}, {chips} chips"
    table(f"{title}; {task.layout.size:,} weights", [head, *body])
    if chosen.figure is not None:
        save_figure(accuracy_figure(found, title=f"{task.name}, sigma {device.sigma:g}"), chosen.figure)
    say(f"{time.perf_counter() - start:.0f} s in all")


def timed(task: Task, ways: list[Programming]) -> float:
    """Seconds for one chip of each way on one mini-batch, the second of two."""
    total = 0.0
    x, _ = next(task.batches("test"))
    for way in ways:
        chips = way.law.draws(2)
        next(chips)
        start = time.perf_counter()
        with torch.no_grad():
            task.predict(next(chips), x)
        total += time.perf_counter() - start
    return total


def costs(task: Task, cells: Cells) -> None:
    """A chip's evaluation beside a clean one, interleaved, best of five."""
    scorer, theta = Scorer(task), task.theta()
    whole, fresh = (by_weight(cells, torch.ones(task.layout.size))(0.1).law.draws(10_000) for _ in range(2))
    contenders = {
        "clean": lambda: scorer.run(lambda: theta),
        "one chip": lambda: scorer.run(partial(lambda chip: chip, next(whole))),
        "a chip per mini-batch": lambda: scorer.run(lambda: next(fresh)),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(5):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    base = min(times["clean"])
    rows = [(name, f"{min(t):.3f}", f"{min(t) / base:.3f}") for name, t in times.items()]
    table("10,000 test images, one core", [("evaluation of", "seconds", "x clean"), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="mnist:FOLDER, parquet:FOLDER, or digits for a quick look")
    parser.add_argument(
        "--model", default="lenet", help="with --figure: lenet, transformer, small_cnn or one of the zoo"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--passes", type=int, default=2, help="over the test data; each has 79 chips")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("lenet-cache"))
    parser.add_argument("--quantized", action="store_true", help="round weights to the device's 256 levels")
    parser.add_argument("--plans", action="store_true", help="also search plans and test them on 553 fresh chips")
    parser.add_argument("--figure", type=Path, help="draw accuracy against write cycles there (.svg or .png)")
    parser.add_argument("--examples", type=int, help="of the test data, for the figure; all if not given")
    parser.add_argument("--chips", type=int, default=150, help="of each point of the figure")
    parser.add_argument("--stderr", type=float, default=0.001, help="at which a point of the figure is done")
    parser.add_argument("--methods", nargs="+", help="of the figure; all if not given")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = load(chosen.data)
    chosen.cache.mkdir(parents=True, exist_ok=True)
    if chosen.figure is not None or chosen.model != "lenet":
        seed, sigma = chosen.seeds[0], chosen.sigma[0]
        task = trained(data, seed, chosen.cache, chosen.epochs, chosen.model, chosen.examples)
        path = chosen.cache / f"sweep_{chosen.model}_{seed}_{chosen.epochs}_{sigma}_{chosen.examples}.json"
        curves(task, Device(sigma=sigma, quantized=chosen.quantized), chosen, path)
        return
    tasks = [trained(data, seed, chosen.cache, chosen.epochs) for seed in chosen.seeds]
    for sigma in chosen.sigma:
        device = Device(sigma=sigma, quantized=chosen.quantized)
        widths, loops, plans = [], [], []
        for seed, task in zip(chosen.seeds, tasks, strict=True):
            cells = Cells.of(task, device)
            scores = rankings(task, cells)
            widths.append(two_widths(task, cells, scores, chosen.passes))
            loops.append(one_loop(task, cells, scores, chosen.passes))
            for name, policy, score in (
                (
                    ("published", by_weight, scores["published"]),
                    ("cells", by_cell, scores["sampled"]),
                    ("graded cells", graded, scores["sampled"]),
                )
                if chosen.plans
                else ()
            ):
                plan = write_verify(task, device, score, policy=policy)
                generator = torch.Generator().manual_seed(1_000 + seed)
                fresh = mean_over_chips(task, plan.apply(task), passes=7, generator=generator)
                gap = (fresh.mean - plan.accuracy.mean) / math.hypot(fresh.stderr, plan.accuracy.stderr)
                drop = f"{100 * (plan.clean - fresh.mean):.2f}"
                trials = str(len(plan.history))
                cycles = f"{plan.write_cycles:.2%}"
                plans.append((str(seed), name, cycles, str(plan.accuracy), str(fresh), f"{gap:+.1f}", drop, trials))
        table(
            f"sigma {sigma}, two widths of error: accuracy in %, {len(tasks)} networks, {79 * chosen.passes} chips",
            [("verified weights", "budget", "accuracy")]
            + [
                (name, f"{100 * budget:g} %", averaged([w[name, budget] for w in widths])) for name, budget in widths[0]
            ],
        )
        table(
            f"sigma {sigma}, one simulated loop at equal extra write pulses",
            [("what is verified", "accuracy", f"minus ({PUBLISHED})", "reads per cell")]
            + [
                (name, averaged([x[name][0] for x in loops]), averaged([x[name][1] for x in loops]), f"{reads:.2f}")
                for name, (_, _, reads) in loops[0].items()
            ],
        )
        if plans:
            head = ("seed", "plan", "write cycles", "promised", "fresh chips", "gap / error", "drop", "trials")
            table(f"sigma {sigma}, plans for a drop of at most 0.5 points", [head, *plans])
    costs(tasks[0], Cells.of(tasks[0], Device(sigma=0.3)))


if __name__ == "__main__":
    main()

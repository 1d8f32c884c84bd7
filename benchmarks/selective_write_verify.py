"""Selective write-verify of LeNet on MNIST: published rankings, single cells, graded tolerances, reading first.

    python benchmarks/selective_write_verify.py --data mnist:/folder/with/the/four/idx/files --seeds 0 1 2

Weights of 8 bits over cells of 1 bit, sigma 0.3 and 0.1 level steps, verified 0.03. Tables per sigma, over all training
seeds: accuracy with two widths of error; accuracy at equal write cycles of one simulated write-verify loop (redraw,
tolerance 0.06), with paired differences to the published ranking at 10 %; with --plans, plans and fresh chips
to test them; costs on one core. Trained networks are kept in --cache. Three seeds and one sigma take about six minutes
on one core, and half a minute more for each network to be trained.
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
from torch.nn import functional as F

from weightbank import Task, epochs
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
    write_verify,
)
from weightbank.cim.montecarlo import Scorer
from weightbank.curvature import backprop, ggn_sampled
from weightbank.data import ImageData, load
from weightbank.evaluation import Estimate
from weightbank.store.arrays import load_arrays, save_arrays
from weightbank.zoo import build

PUBLISHED, TENTH = "published, 10 %", 0.1
BEST = partial(read_first, tolerances=MENU[1:])


def trained(data: ImageData, seed: int, cache: Path, count: int) -> Task:
    torch.manual_seed(seed)
    model = build("lenet_mnist")
    task = Task("LeNet", model, F.cross_entropy, data.train, data.test, batch_size=128)
    path = cache / f"lenet_{seed}_{count}.safetensors"
    if path.exists():
        model.load_state_dict(load_arrays(path)[0])
        return task
    task.train.generator.manual_seed(seed)
    for _ in epochs(task, torch.optim.Adam(model.parameters(), lr=1e-3), count=count):
        pass
    save_arrays(path, model.state_dict())
    return task


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
    parser.add_argument("--data", required=True, help="mnist:FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--passes", type=int, default=2, help="over the test data; each has 79 chips")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("lenet-cache"))
    parser.add_argument("--quantized", action="store_true", help="round weights to the device's 256 levels")
    parser.add_argument("--plans", action="store_true", help="also search plans and test them on 553 fresh chips")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = load(chosen.data)
    chosen.cache.mkdir(parents=True, exist_ok=True)
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

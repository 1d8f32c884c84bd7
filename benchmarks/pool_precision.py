"""Three networks of the embedded digits in the memory of the largest, in 32, 16, 8 and 4 bits: accuracy and bytes.

    python benchmarks/pool_precision.py [--steps 400] [--seeds 4]

Tuned in the format itself (8 and 4 bits straight through the rounding), and the float32 pool converted, each weight to
the nearest number or by example; accuracy in % on the 500 test digits, mean over seeds; one standard error of one
accuracy is about a point.
"""

import argparse

import torch
import torch.nn.functional as F
from measure import table

import weightbank as wb
from weightbank.data import digits
from weightbank.zoo import mlp

WIDTHS = (64, 48, 32)


def network(width: int, seed: int) -> wb.Task:
    data = digits()
    torch.manual_seed(seed)
    train = wb.TensorBatches(*data.train, 32, shuffle=True, generator=torch.Generator().manual_seed(seed))
    task = wb.Task(f"digits {width}", mlp(64, width, 10), F.cross_entropy, train, data.test)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in wb.epochs(task, optimizer, count=12):
        pass
    return task


def accuracy(task: wb.Task, law: wb.WeightDistribution) -> float:
    return 100 * float(wb.evaluate(task, law, 1).accuracy.mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    formats = ("fp32", "bf16", "bfp8", "bfp4")
    found: dict[str, list[list[float]]] = {name: [] for name in ("alone", *formats)}
    found |= {f"fp32 to {name}, {way}": [] for name in formats[2:] for way in ("nearest", "by example")}
    size: dict[str, int] = {}
    for seed in range(chosen.seeds):
        networks = [network(width, seed) for width in WIDTHS]
        found["alone"].append([accuracy(task, wb.Point(task.theta(), task.layout)) for task in networks])
        size["alone"] = sum(4 * task.layout.size for task in networks)
        for name in formats:
            pool = wb.Pool(networks[0].layout.size + 512, dtype=name, seed=seed)
            for task in networks:
                pool.add(task)
            wb.tune(pool, networks, steps=chosen.steps, tolerance=0.05, seed=seed)
            found[name].append([accuracy(task, pool[task.name]) for task in networks])
            size[name] = pool.report().bytes_owner
            for low in formats[2:] if name == "fp32" else ():
                for way, tasks in (("nearest", []), ("by example", networks)):
                    small = pool.copy()
                    wb.convert(small, low, tasks, tolerance=1, seed=seed)
                    label = f"fp32 to {low}, {way}"
                    found[label].append([accuracy(task, small[task.name]) for task in networks])
                    size[label] = small.report().bytes_owner
    rows = [("pool", *(f"width {width}" for width in WIDTHS), "bytes", "smaller")]
    for name, each in found.items():
        means = [f"{sum(column) / len(column):.1f}" for column in zip(*each, strict=True)]
        rows.append((name, *means, f"{size[name]:,}", f"{size['alone'] / size[name]:.1f}"))
    table(f"three networks of digits in one memory, {chosen.steps} steps, {chosen.seeds} seeds: test accuracy %", rows)


if __name__ == "__main__":
    main()

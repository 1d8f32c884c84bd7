"""Weights in few bits, rounded to the nearest number and by example: NLL and accuracy against the exact weights.

    python benchmarks/by_example.py [--data mnist:FOLDER] [--model lenet_mnist] [--seeds 3] [--epochs 12] [--steps 200]

By default a perceptron of the embedded digits. Trained once per seed with SGD; each format packs the same weights
twice. "3 bits, more where it matters" is `budget.mixed_precision` by output channel, at the bytes of 3 bits everywhere.
Changes of the NLL and of the accuracy (points) on the test data, mean over seeds ± its standard error; "smaller" counts
codes and scales.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from measure import table

import weightbank as wb
from weightbank.budget import mixed_precision
from weightbank.data import load
from weightbank.lowprecision import pack_by_example
from weightbank.zoo import MODELS, mlp

ROWS = {bits: wb.BlockFloatingPoint(bits, wb.ByDimensions()) for bits in range(2, 9)}
MIXED = "3 bits, more where it matters"


def trained(data: str, model: str | None, epochs: int, seed: int) -> wb.Task:
    images = load(data)
    torch.manual_seed(seed)
    net = mlp(images.train[0][0].numel(), 64, len(images.classes)) if model is None else MODELS[model]()
    train = wb.TensorBatches(*images.train, 64, shuffle=True, generator=torch.Generator().manual_seed(seed))
    task = wb.Task(model or "mlp", net, F.cross_entropy, train, images.test)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in wb.epochs(task, optimizer, count=epochs):
        schedule.step()
    return task


def scores(task: wb.Task, law: wb.WeightDistribution) -> tuple[float, float]:
    found = wb.evaluate(task, law, 1, batch_norm="keep")
    return float(found["nll"].mean), 100 * float(found.accuracy.mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--model", choices=sorted(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    formats = {"bfp8": "bfp8", "bfp4": "bfp4", "mxfp4": "mxfp4_e2m1", "3 bits": ROWS[3], MIXED: None, "2 bits": ROWS[2]}
    changes: dict[tuple[str, str], list[tuple[float, float]]] = {}
    sizes: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    exact = []
    for seed in range(chosen.seeds):
        task = trained(chosen.data, chosen.model, chosen.epochs, seed)
        theta, plain = task.theta(), scores(task, wb.Point(task.theta(), task.layout))
        exact.append(plain)
        for name, format in formats.items():
            own = format
            if own is None:
                h, size = wb.curvature.ggn_sampled(task, images=2_000), wb.pack(theta, task.layout, ROWS[3]).nbytes
                own = mixed_precision(theta, task.layout, h, bytes=size, formats=list(ROWS.values()), by="row")
            found = pack_by_example(task, own, steps=chosen.steps, seed=seed)
            laws = {"to nearest": wb.pack(theta, task.layout, own), "by example": found.packed}
            sizes[name] = 4 * task.layout.size / found.packed.nbytes
            seconds.setdefault(name, []).append(found.seconds)
            for way, law in laws.items():
                nll, accuracy = scores(task, law)
                changes.setdefault((name, way), []).append((nll - plain[0], accuracy - plain[1]))
    nll, accuracy = (sum(column) / len(column) for column in zip(*exact, strict=True))
    rows = [
        ("format", "smaller", "", "NLL", "accuracy", "seconds"),
        ("exact", "1.0", "", f"{nll:.4f}", f"{accuracy:.2f}", ""),
    ]
    for (name, way), each in changes.items():
        cells = [wb.Estimate.of([pair[column] for pair in each]) for column in (0, 1)]
        errors = [
            "" if cell.stderr is None else f" ± {cell.stderr:.{digits}f}"
            for cell, digits in zip(cells, (4, 2), strict=True)
        ]
        spent = f"{sum(seconds[name]) / len(seconds[name]):.1f}" if way == "by example" else ""
        rows.append(
            (
                name,
                f"{sizes[name]:.1f}",
                way,
                f"{cells[0].mean:+.4f}{errors[0]}",
                f"{cells[1].mean:+.2f}{errors[1]}",
                spent,
            )
        )
    table(f"{chosen.data}, {chosen.model or 'perceptron'}, {chosen.seeds} seeds: changes on the test data", rows)


if __name__ == "__main__":
    main()

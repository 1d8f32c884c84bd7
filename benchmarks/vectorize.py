"""Evaluating several draws at once with vmap, against one at a time: where it pays and where it does not.

python benchmarks/vectorize.py
"""

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from measure import table

import weightbank as wb
from weightbank.data import digits
from weightbank.zoo import mlp, small_cnn

DRAWS = 60


def seconds(task: wb.Task, law: wb.WeightDistribution, vectorize: int | None) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        wb.evaluate(task, law, DRAWS, vectorize=vectorize)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    data = digits()
    rows = [("model", "draws at once", "seconds", "x faster than one at a time")]
    models = {"mlp 64-32-10": mlp(64, 32, 10), "conv net without BatchNorm": small_cnn(1, 8, 10, batch_norm=False)}
    for name, model in models.items():
        task = wb.Task(name, model, F.cross_entropy, data.train, data.test, batch_size=500)
        size = task.layout.size
        law = wb.Gaussian(task.layout, task.theta(), torch.full((size,), 1e-4))
        base = seconds(task, law, None)
        rows.append((name, "1", f"{base:.2f}", "1.00"))
        for together in (5, 10, 30):
            taken = seconds(task, law, together)
            rows.append((name, str(together), f"{taken:.2f}", f"{base / taken:.2f}"))
    table(f"evaluate, {DRAWS} draws, {len(data.test[1])} test digits, metrics included", rows)


if __name__ == "__main__":
    main()

"""What a step of tuning costs beside plain training, and its memory with one, three and six networks in the pool.

    python benchmarks/pool_tuning.py [--steps 60] [--weights 1000000]

Networks of linear layers on random data, so only times and memory mean anything. "plain" trains each network alone
with Adam; tying does the same forward and backward passes and one Adam step on the pool. Memory is the growth of the
peak (VmHWM) of a process of its own.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from measure import in_own_process, peak_megabytes, table

import weightbank as wb
from weightbank.paging import Pool, tune
from weightbank.zoo import mlp

BATCH, INPUTS = 100, 256


def network(number: int, weights: int) -> wb.Task:
    width = round((-(INPUTS + 12) + ((INPUTS + 12) ** 2 + 4 * weights) ** 0.5) / 2)
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(1_000, INPUTS, generator=generator)
    y = torch.randint(10, (1_000,), generator=generator)
    torch.manual_seed(number)
    return wb.Task(
        f"network {number}", mlp(INPUTS, width, width, 10), F.cross_entropy, (x, y), (x, y), batch_size=BATCH
    )


def measure(way: str, count: int, weights: int, steps: int) -> dict[str, float]:
    """Milliseconds per network and step, and MB of peak memory beyond networks and pool."""
    torch.set_num_threads(1)
    tasks = [network(number, weights) for number in range(count)]
    size = tasks[0].layout.size
    pool = Pool(round(1.05 * size), dtype="fp32" if way == "plain" else way)
    if way != "plain":
        for task in tasks:
            pool.add(task, importance=torch.ones(size))
        tune(pool, tasks, steps=1, tolerance=10.0)
    before = peak_megabytes()
    start = time.perf_counter()
    if way == "plain":
        for task in tasks:
            optimizer = torch.optim.Adam(task.model.parameters(), fused=True)
            batches = 0
            while batches < steps:
                for x, y in task.batches("train"):
                    optimizer.zero_grad()
                    task.loss(task.model(x), y).backward()
                    optimizer.step()
                    batches += 1
                    if batches == steps:
                        break
    else:
        tune(pool, tasks, steps=steps, every=steps, tolerance=10.0)
    seconds = time.perf_counter() - start
    return {"ms": 1e3 * seconds / steps / count, "mb": peak_megabytes() - before, "peak": peak_megabytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--weights", type=int, default=1_000_000)
    parser.add_argument("--child", nargs=4)
    chosen = parser.parse_args()
    if chosen.child:
        way, *numbers = chosen.child
        print(json.dumps(measure(way, *map(int, numbers))))
        return
    rows = [("way", "networks", "ms per minibatch", "peak MB")]
    for way in ("plain", "fp32", "bfp8", "bfp4"):
        for count in (1, 3, 6):
            arguments = ("--child", way, str(count), str(chosen.weights), str(chosen.steps))
            found = in_own_process(str(Path(__file__)), *arguments)
            rows.append((way, str(count), f"{found['ms']:.2f}", f"{found['peak']:.0f}"))
    table(f"networks of {chosen.weights:,} weights, minibatches of {BATCH}", rows)


if __name__ == "__main__":
    main()

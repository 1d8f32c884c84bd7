"""What a curvature costs and how good it is, against plain forward and backward passes over the same images.

    python benchmarks/curvature.py --data mnist:FOLDER

LeNet (conv 1-6-16, 784-120-84-10; 106,154 weights) trained here for two epochs; one thread, each contender in a
process of its own. Times are CPU seconds, memory is what a pass adds to a process that has loaded its data.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from measure import in_own_process, peak_megabytes, table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weightbank import Task, curvature, epochs
from weightbank.data import load
from weightbank.zoo import model_4fc

IMAGES, REPEATS = 6_000, 3
COSTS = ("ggn_sampled", "fisher_empirical", "backprop", "hutchinson", "ggn")
ORDERS = ("ggn_sampled", "labels", "default", "fisher_empirical", "backprop", "hutchinson", "magnitude", "random")


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(784, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def passes(task: Task, batch_size: int, images: int, *, step: bool = False) -> None:
    """Plain forward and backward passes, or training steps with momentum, over the first images."""
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-6, momentum=0.9)
    x, y = task.train.x, task.train.y
    for start in range(0, images, batch_size):
        end = min(start + batch_size, images)
        optimizer.zero_grad()
        F.cross_entropy(task.model(x[start:end]), y[start:end]).backward()
        if step:
            optimizer.step()


def run(name: str, task: Task, batch_size: int, images: int) -> None:
    if name == "training":
        passes(task, batch_size, images, step=True)
    else:
        getattr(curvature, name)(task, images=images, batch_size=batch_size)


def seconds(name: str, task: Task, batch_size: int) -> dict:
    """CPU seconds of the contender and of plain passes over the same images, taken in turn; the best of each."""
    mine, plain = [], []
    for repeat in range(REPEATS + 1):
        for taken, work in ((plain, lambda: passes(task, batch_size, IMAGES)), (mine, None)):
            start = time.process_time()
            work() if work else run(name, task, batch_size, IMAGES)
            if repeat:
                taken.append(time.process_time() - start)
    return {"seconds": min(mine), "plain": min(plain)}


def memory(name: str, task: Task, batch_size: int) -> dict:
    """Megabytes that six batches add to the peak; before, a tiny network ran once and loaded all code."""
    tiny = nn.Sequential(nn.Conv2d(1, 1, 5, stride=5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 10))
    small = Task("tiny", tiny, F.cross_entropy, (task.train.x[:4], task.train.y[:4]), [])
    run(name, small, 2, 4)
    passes(small, 2, 4)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak_megabytes()
    run(name, task, batch_size, 6 * batch_size)
    return {"megabytes": peak_megabytes() - before}


def scores(name: str, task: Task) -> Tensor:
    if name == "labels":
        return curvature.ggn_sampled(task, images=IMAGES, probe="labels")
    if name == "default":
        return curvature.ggn_sampled(task)
    return getattr(curvature, name)(task, images=IMAGES)


def quality(task: Task) -> list[tuple[str, ...]]:
    """How each order of weights compares with the exact diagonal of the same images."""
    from scipy.stats import spearmanr

    exact = curvature.ggn(task, images=IMAGES)
    rows = []
    for name in ("ggn", *ORDERS):
        start = time.process_time()
        found = exact if name == "ggn" else scores(name, task)
        taken = time.process_time() - start
        cells = [name, "" if name == "ggn" else f"{taken:.2f}", f"{spearmanr(found, exact)[0]:.4f}"]
        for fraction in (0.01, 0.1):
            count = round(fraction * len(exact))
            chosen, best = found.topk(count).indices, exact.topk(count).indices
            shared = len(set(chosen.tolist()) & set(best.tolist())) / count
            cells += [f"{shared:.3f}", f"{float(exact[chosen].sum() / exact.sum()):.3f}"]
        masses = [found[task.layout.slice(f"{layer}.weight")].sum() for layer in (0, 3, 7, 9, 11)]
        true = [exact[task.layout.slice(f"{layer}.weight")].sum() for layer in (0, 3, 7, 9, 11)]
        known = name not in ("magnitude", "random")
        cells.append(" ".join(f"{float(m / t):.3f}" for m, t in zip(masses, true, strict=True)) if known else "")
        rows.append(tuple(cells))
    return rows


def main() -> None:
    home = os.environ.get("WEIGHTBANK_DATA")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=home and f"mnist:{home}/mnist", required=home is None)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = load(chosen.data)
    if chosen.contender:
        kind, name, network, batch_size = chosen.contender.split(",")
        model = lenet() if network == "lenet" else model_4fc()
        if network == "lenet":
            model.load_state_dict(load_file(chosen.weights))
        x, y = data.train
        task = Task(network, model, F.cross_entropy, (x[:IMAGES].clone(), y[:IMAGES].clone()), data.test)
        task.train.shuffle = False
        print(json.dumps((memory if kind == "memory" else seconds)(name, task, int(batch_size))))
        return

    torch.manual_seed(0)
    task = Task("lenet", lenet(), F.cross_entropy, data.train, data.test)
    for epoch in epochs(task, torch.optim.Adam(task.model.parameters(), 1e-3), count=2):
        print(f"trained {epoch + 1} of 2 epochs", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "lenet.safetensors")
        save_file(task.model.state_dict(), weights)

        def measured(kind: str, name: str, network: str, batch_size: int) -> dict:
            arguments = ("--data", chosen.data, "--weights", weights)
            return in_own_process(__file__, *arguments, "--contender", f"{kind},{name},{network},{batch_size}")

        rows = [("function", "batch", "CPU s", "x forward and backward")]
        for batch_size in (32, 128):
            for name in COSTS:
                found = measured("seconds", name, "lenet", batch_size)
                ratio = f"{found['seconds'] / found['plain']:.2f}"
                rows.append((name, str(batch_size), f"{found['seconds']:.2f}", ratio))
        table(f"LeNet, {IMAGES:,} images: time", rows)
        rows = [("network", "function", "batch", "MB added", "x training step (SGD, momentum)")]
        for network in ("lenet", "model_4fc"):
            for batch_size in (32, 128):
                base = measured("memory", "training", network, batch_size)["megabytes"]
                rows.append((network, "training", str(batch_size), f"{base:.1f}", ""))
                for name in COSTS:
                    peak = measured("memory", name, network, batch_size)["megabytes"]
                    rows.append((network, name, str(batch_size), f"{peak:.1f}", f"{peak / base:.2f}"))
        table("peak memory of six batches (model_4fc: 2,797,010 weights)", rows)
    head = ("order", "CPU s", "Spearman", "top 1 %", "captured", "top 10 %", "captured", "mass by layer / exact")
    table(f"LeNet, {IMAGES:,} images, against the exact diagonal", [head, *quality(task)])


if __name__ == "__main__":
    main()

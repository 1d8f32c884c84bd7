"""A small network trained in 8, 6 and 5 bits: iterates and averages like for like, with equal activations.

    python benchmarks/low_precision_training.py --data parquet:CIFAR10 [--bits 8 6 5] [--seeds 0 1] [--quick]

Images at half resolution, 12,800 to train and all to test; conv16-16-M-32-32-M-fc64 without BatchNorm, SGD with
momentum 0.9, weight decay 5e-4, batch 128, 24 epochs on the published schedule (rate 0.02, averages from epoch 16 at
0.01), all six quantities of SWALP (arXiv 1904.11943) stochastically rounded: one exponent per channel of weights,
one per tensor of activations and errors. Means over seeds ± their standard error; test error in %.

Columns: the iterate when averaging starts, at the end of its decay, and the last one, both with quantized activations;
the average with quantized and with full activations; the average rounded to the nearest of the weights' own format;
the average kept in 8 bits all along; and the last iterate with full activations. The published comparison is the second
column against the fourth, which differ in their activations, too.
"""

import argparse
import os
from collections import defaultdict

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from measure import table
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from weightbank import Moments, Task, TensorBatches, epochs, evaluate
from weightbank.data import load
from weightbank.distributions.packed import pack
from weightbank.evaluation import Estimate
from weightbank.lowprecision import Precision, RoundedAverage, published_schedule

COLUMNS = (
    "iterate before averaging", "last iterate", "average", "average, full activations", "average in own bits",
    "kept in 8 bits, full act.", "last iterate, full act.",
)  # fmt: skip


def network(channels: int, size: int, classes: int) -> nn.Sequential:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]

    convolutions = [*layer(channels, 16), *layer(16, 16), nn.MaxPool2d(2), *layer(16, 32), *layer(32, 32)]
    features = 32 * (size // 4) ** 2
    return nn.Sequential(
        *convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, classes)
    )


def prepared(data: str, examples: int, seed: int) -> Task:
    images = load(data)
    (x, y), (test_x, test_y) = images.train, images.test
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:examples]
    x, test_x = (F.avg_pool2d(part, 2) for part in (x[chosen], test_x))
    deviation, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
    x, test_x = ((part - mean) / deviation for part in (x, test_x))
    torch.manual_seed(seed)
    model = network(x.shape[1], x.shape[2], len(images.classes))
    train = TensorBatches(x, y[chosen], 128, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return Task(images.name, model, F.cross_entropy, train, (test_x, test_y), batch_size=512)


def run(task: Task, bits: int | None, count: int, start: int, seed: int) -> dict[str, float]:
    """Test errors in % of one training run."""
    precision = Precision() if bits is None else Precision.swalp(bits, seed=seed)
    average, kept = (
        Moments(task.layout, variance=False),
        RoundedAverage(task.layout, "BlockFloatingPoint(8)", seed=seed),
    )
    found = {}
    with precision.attached(task.model) as attached:

        def error(theta: torch.Tensor, *, full: bool = False) -> float:
            with attached.evaluating("off" if full else "keep"):
                return 100 * (1 - evaluate(task, theta).accuracy.mean)

        optimizer = attached.optimizer(
            torch.optim.SGD(task.model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        )
        scheduler = LambdaLR(optimizer, published_schedule(0.02, start=start, average_lr=0.01))
        for epoch in epochs(task, optimizer, count=count, scheduler=scheduler):
            if epoch + 1 == start:
                found[COLUMNS[0]] = error(task.theta())
            if epoch >= start:
                average.update(task.theta())
                kept.update(task.theta())
        mean = average.mean()
        own = precision.weights or "fp32"
        found |= {
            COLUMNS[1]: error(task.theta()),
            COLUMNS[2]: error(mean),
            COLUMNS[3]: error(mean, full=True),
            COLUMNS[4]: error(pack(mean, task.layout, own).mean()),
            COLUMNS[5]: error(kept.mean(), full=True),
            COLUMNS[6]: error(task.theta(), full=True),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--examples", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="two epochs of 512 examples, one seed: shows that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, examples, seeds = options.epochs, options.examples, options.seeds
    if options.quick:
        count, examples, seeds = 3, 512, [0]
    rows = [("bits", *COLUMNS)]
    for bits in (None, *options.bits):
        errors = defaultdict(list)
        for seed in seeds:
            for name, value in run(prepared(options.data, examples, seed), bits, count, 2 * count // 3, seed).items():
                errors[name].append(value)
        estimates = [Estimate.of(errors[name]) for name in COLUMNS]
        cells = [f"{e.mean:.2f}" + ("" if e.stderr is None else f"±{e.stderr:.2f}") for e in estimates]
        rows.append((str(bits or "full precision"), *cells))
    table(f"Test error in % on {options.data.partition(':')[0]}, {count} epochs, {len(seeds)} seeds", rows)


if __name__ == "__main__":
    main()

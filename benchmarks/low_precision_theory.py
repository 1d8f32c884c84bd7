"""Low-precision SGD and its average against theory: linear regression, and logistic regression on MNIST.

    python benchmarks/low_precision_theory.py [--quick] [--steps 1000000] [--data mnist:FOLDER]

Linear regression: 4096 examples of 256 normal features, w* ~ U(-1, 1), label noise 1, one example a step, rate 1e-3,
w_0 = 0, 20,000 steps before averaging; only the weights are rounded, stochastically, to fixed point. Two replicas are
two rows of one parameter of the library's own optimizer hooks. With A = X'X / n, E|g_j| measured at the iterates, and
delta the step of the grid, the gradient and the rounding together have the variance delta alpha E|g_j|, so

    iterates   E |w - w*|² = (delta / 2) sum_j (A^-1)_jj E|g_j|              whatever the rate (full precision:
                             (alpha / 2) sum_j (A^-1)_jj E g_j²)
    average    E |wbar - w*|² = (delta / (alpha T)) sum_j (A^-2)_jj E|g_j|   without a floor

and for independent noise of variance sigma² at most (alpha² sigma² + d delta² / 4) / (alpha² mu² T) + |w_0 - w*|² /
(alpha mu T)², mu the least eigenvalue (SWALP, arXiv 1904.11943, for quadratics).

Logistic regression (with --data): 60,000 images with a bias, l2 1e-4, batch 128, rate 0.1, 10,000 steps, then 30,000
averaged ones; weights of FL fractional bits and FL + 4 in all, so that nothing saturates.

A million steps take about four minutes a format on one core, logistic regression about one.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import table
from torch import Tensor, nn

from weightbank import Layout, Moments
from weightbank.data import load
from weightbank.formats import FixedPoint
from weightbank.lowprecision import Precision
from weightbank.progress import track

REPLICAS, RATE = 2, 1e-3


def precision(format: FixedPoint | None) -> Precision:
    return Precision(weights=format, accumulator=format)


def linear_regression(steps: int, warm_up: int, looks: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 256, generator=generator)
    truth = torch.rand(256, generator=generator) * 2 - 1
    y = x @ truth + torch.randn(4096, generator=generator)
    hessian = (x.T @ x / len(x)).double()
    best = torch.linalg.solve(hessian, (x.T @ y / len(x)).double())
    inverse = torch.linalg.inv(hessian)
    least = float(torch.linalg.eigvalsh(hessian)[0])
    rows = [
        ("weights", "iterates", "predicted", *(f"average {t:,}" for t in looks), "predicted", "bound", "best point")
    ]
    for format in (None, FixedPoint(10, 8), FixedPoint(8, 6), FixedPoint(6, 4)):
        model = nn.Module()
        model.weight = nn.Parameter(torch.zeros(REPLICAS, 256))
        average = Moments(Layout.of(model), variance=False)
        distances, averages = [], []
        sizes, squares = torch.zeros(256), torch.zeros(256)
        draws = torch.Generator().manual_seed(1)
        with precision(format).attached(model) as attached:
            optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=RATE))
            for step in track(range(warm_up + steps), f"{format or 'full precision'}"):
                chosen = torch.randint(0, len(x), (REPLICAS,), generator=draws)
                inputs, weights = x[chosen], model.weight.detach()
                gradient = ((inputs * weights).sum(1) - y[chosen])[:, None] * inputs
                model.weight.grad = gradient
                optimizer.step()
                if step < warm_up:
                    continue
                average.update(weights.view(-1))
                if step % 10 == 0:
                    distances.append(float((weights.double() - best).square().sum(1).mean()))
                    sizes += gradient.abs().mean(0)
                    squares += gradient.square().mean(0)
                if average.count in looks:
                    found = average.mean().view(REPLICAS, -1).double()
                    averages.append(float((found - best).square().sum(1).mean()))
        size, square = (total.double() / len(distances) for total in (sizes, squares))
        if format is None:
            plateau, delta = RATE / 2 * float(inverse.diagonal() @ square), 0.0
            limit = float((inverse @ inverse).diagonal() @ square) / steps
        else:
            delta = 2.0**-format.fraction
            plateau = delta / 2 * float(inverse.diagonal() @ size)
            limit = delta / (RATE * steps) * float((inverse @ inverse).diagonal() @ size)
        noise = RATE**2 * float(square.sum()) + 256 * delta**2 / 4
        bound = noise / (RATE * least) ** 2 / steps + float(best.square().sum()) / (RATE * least * steps) ** 2
        nearest = 0.0 if format is None else float((format.quantize(best) - best).square().sum())
        numbers = (sum(distances) / len(distances), plateau, *averages, limit, bound, nearest)
        rows.append((str(format or "full precision"), *(f"{number:.3g}" for number in numbers)))
    table(f"Linear regression: squared distance to the least-squares solution, {steps:,} averaged steps", rows)


def logistic_regression(data: str, steps: int, warm_up: int, batch: int = 128, decay: float = 1e-4) -> None:
    images = load(data)
    (x, y), (test_x, test_y) = (
        (torch.cat([part[0].flatten(1), torch.ones(len(part[1]), 1)], 1), part[1])
        for part in (images.train, images.test)
    )
    classes = len(images.classes)

    def gradient(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        error = (x @ weights.T).softmax(1)
        error[torch.arange(len(y)), y] -= 1
        return error.T @ x / len(y) + decay * weights

    def measured(weights: Tensor) -> tuple[float, float, float]:
        wrong = [100 * float(((u @ weights.T).argmax(1) != v).double().mean()) for u, v in ((x, y), (test_x, test_y))]
        return float(gradient(weights, x, y).square().sum()), *wrong

    rows = [("weights", "grad² SGD", "grad² average", "train % SGD", "average", "test % SGD", "average")]
    for fraction in (None, 10, 8, 6, 4, 2):
        format = None if fraction is None else FixedPoint(fraction + 4, fraction)
        model = nn.Module()
        model.weight = nn.Parameter(torch.zeros(classes, x.shape[1]))
        average = Moments(Layout.of(model), variance=False)
        looks = []
        draws = torch.Generator().manual_seed(1)
        with precision(format).attached(model) as attached:
            optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
            for step in track(range(warm_up + steps), f"{format or 'full precision'}"):
                chosen = torch.randint(0, len(x), (batch,), generator=draws)
                model.weight.grad = gradient(model.weight.detach(), x[chosen], y[chosen])
                optimizer.step()
                if step >= warm_up:
                    average.update(model.weight.detach().view(-1))
                    if (step + 1 - warm_up) % max(1, steps // 10) == 0:
                        looks.append(measured(model.weight.detach()))
        sgd = [sum(values) / len(looks) for values in zip(*looks, strict=True)]
        mean = measured(average.mean().view(classes, -1))
        cells = [f"{sgd[0]:.2e}", f"{mean[0]:.2e}"]
        cells += [f"{number:.2f}" for pair in zip(sgd[1:], mean[1:], strict=True) for number in pair]
        rows.append((str(format or "full precision"), *cells))
    table(f"Logistic regression on {images.name}: ten looks at the iterate, {steps:,} averaged steps", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--data", help="mnist:FOLDER for the logistic regression")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps, warm_up = (3_000, 500) if options.quick else (options.steps, 20_000)
    looks = [t for t in (1_000, 10_000, 100_000, 1_000_000) if t < steps] + [steps]
    linear_regression(steps, warm_up, looks[-3:])
    if options.data is not None:
        logistic_regression(options.data, *((300, 100) if options.quick else (30_000, 10_000)))


if __name__ == "__main__":
    main()

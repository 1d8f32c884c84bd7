"""What perturbed weights cost, predicted and measured, and what one budget buys.

    python benchmarks/budget.py                                 # the embedded digits, two minutes on one core
    python benchmarks/budget.py --data mnist:FOLDER
    python benchmarks/budget.py --figure theory.svg             # measured by predicted, law by law (* by along)

First, for each law, ½ Σ h E[δ²] with the Gauss-Newton diagonal h of the examples measured, beside the measured rise of
their mean loss (its standard error over draws; the part of the gradient at θ that averages out, g · (δ - E δ), is taken
off each draw, which changes nothing but the error). "along" is E[g · δ + ½ δ' G δ] with the whole Gauss-Newton matrix:
what differs from "predicted" the diagonal and the missing gradient leave out, what differs from "measured" lies beyond
second order, or in the kinks of ReLU and pooling, which G does not know. Laws: stochastic and nearest rounding, a noisy
device with and without write-verify, values shared in a pool (shrunk towards the network's own weights), posterior
spread (SWAG at several scales), and two together.

Then, at equal bytes, formats by tensor against one format for all; and, on a noisy device, `allocate` against the
ranking of selective write-verify, and bits and cycles as one budget against either alone. Accuracy and NLL on test
data, paired by example or by mini-batch, with standard errors.
"""

import argparse
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import table
from torch import Tensor, nn
from torch.nn import functional as F

from weightbank import Device, Moments, Point, Pool, Rounded, RowLog, Task, TensorBatches, epochs, pack, program
from weightbank.budget import (
    Together,
    allocate,
    expected_increase,
    format_options,
    measured_increase,
    mixed_precision,
)
from weightbank.budget.along import increase_along
from weightbank.cim import Cells, Chip, benefit, compare, select, select_cells
from weightbank.cim.spending import bits_and_cycles, cell_options
from weightbank.curvature import ggn
from weightbank.data import ImageData, load
from weightbank.distributions import StreamedDistribution, WeightDistribution
from weightbank.evaluation import Estimate, evaluate
from weightbank.formats import BlockFloatingPoint, ByDimensions, Format, Mixed
from weightbank.layout import Layout
from weightbank.report import save_figure
from weightbank.report.theory import Compared, theory_figure
from weightbank.zoo import build, mlp, small_cnn

COUPLED = ("nearest", "pages", "spread, SWAG")
"""Laws whose errors are no accident of each weight's own."""
SHARES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Towards:
    """θ + share (θ' - θ), θ' of `law`: its perturbation made smaller, or with a share below 0 turned round."""

    theta: Tensor
    law: WeightDistribution
    share: float

    @property
    def layout(self) -> Layout:
        return self.law.layout

    def mean(self) -> Tensor:
        return self.theta + self.share * (self.law.mean() - self.theta)

    def variance(self) -> Tensor:
        return self.share**2 * self.law.variance()

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([draw.clone() for draw in self.draws(count, generator=generator)])

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        for draw in drawn(self.law, count, generator):
            yield self.theta + self.share * (draw - self.theta)


@dataclass(frozen=True)
class Row:
    compared: Compared
    along: float

    def cells(self) -> tuple[str, ...]:
        found = self.compared
        return (
            found.law,
            found.setting,
            f"{found.predicted:.3g}",
            f"{self.along:.3g}",
            found.measured.text,
            f"{found.ratio:.2f}",
            f"{found.measured.mean / self.along:.2f}",
            "" if found.within else "outside 1.5",
        )


def drawn(law: WeightDistribution, count: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    return (
        law.draws(count, generator=generator)
        if isinstance(law, StreamedDistribution)
        else iter(law.sample(count, generator=generator))
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(name: str, model: nn.Module, data: ImageData, chosen: argparse.Namespace) -> Task:
    """A network; its task's training data are the examples looked at, its test batches those of single chips."""
    task = Task(name, model, F.cross_entropy, data.train, data.test, batch_size=32)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.epochs)
    for _ in epochs(task, optimizer, count=chosen.epochs, scheduler=scheduler):
        pass
    looked = tuple(part[: chosen.examples] for part in data.train)
    return Task(name, model, F.cross_entropy, TensorBatches(*looked, 1_000), TensorBatches(*data.test, chosen.batch))


def gradient(task: Task) -> Tensor:
    """Of the mean loss of the examples at the task's weights, shape (P,)."""
    theta = task.theta().requires_grad_()
    total, examples = torch.zeros_like(theta), 0
    for x, y in task.batches():
        total += len(y) * torch.autograd.grad(task.loss(task.predict(theta, x), y), theta)[0]
        examples += len(y)
    return total / examples


def compared(task: Task, h: Tensor, g: Tensor, name: str, setting: str, law: WeightDistribution, samples: int) -> Row:
    theta = task.theta()
    predicted = expected_increase(h, law, theta=theta)
    bias = float(g.double() @ (law.mean() - theta).double())
    rises = measured_increase(task, law, samples, theta=theta, generator=seeded()).values
    slopes = [float(g.double() @ (draw - theta).double()) for draw in drawn(law, samples, seeded())]
    measured = Estimate.of(rise - slope + bias for rise, slope in zip(rises, slopes, strict=True))
    along = increase_along(task, law, samples, theta=theta, generator=seeded()).values
    taken = Estimate.of(each - slope + bias for each, slope in zip(along, slopes, strict=True))
    return Row(Compared(name, setting, predicted, measured), taken.mean)


def laws(task: Task, h: Tensor, data: ImageData, seed: int) -> Iterator[tuple[str, str, WeightDistribution]]:
    """Name, setting and law; from small perturbations to large ones."""
    theta, layout = task.theta(), task.layout
    point = Point(theta, layout)
    for bits in range(8, 1, -1):
        yield "rounding", f"{bits} bits", Rounded(point, BlockFloatingPoint(bits, block=ByDimensions()), "stochastic")
    for bits in range(8, 1, -1):
        yield "nearest", f"{bits} bits", Rounded(point, BlockFloatingPoint(bits, block=ByDimensions()))
    sigmas = (0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 1.0)
    for sigma in sigmas:
        yield "device", f"sigma {sigma:g}", program(task, Device(sigma=sigma))
    for sigma in sigmas:
        device = Device(sigma=sigma, verified_sigma=0.03)
        cells = Cells.of(task, device)
        yield "verified", f"sigma {sigma:g}, 10 %", Chip(cells, select(benefit(h, cells), 0.1, among=cells.on_device))
    shared = in_a_pool(task, data, seed)
    for share in (0.03, 0.1, 0.2, 0.3, 0.5, 1.0):
        yield "pages", f"share {share:g}", Towards(theta, shared, share)
    moments = recorded(task, data)
    for scale in (0.01, 0.1, 0.5, 2.0, 8.0, 32.0):
        yield "spread, diagonal", f"scale {scale:g}", moved(moments.gaussian(covariance="diagonal", scale=scale), theta)
    for scale in (0.01, 0.1, 0.5, 2.0, 8.0, 32.0):
        yield "spread, SWAG", f"scale {scale:g}", moved(moments.gaussian(scale=scale), theta)
    for bits, sigma in ((8, 0.03), (6, 0.06), (5, 0.1), (4, 0.2), (4, 0.3), (3, 0.5)):
        rounded = Rounded(point, BlockFloatingPoint(bits, block=ByDimensions()), "stochastic")
        yield (
            "together",
            f"{bits} bits, sigma {sigma:g}",
            Together(theta, [rounded, program(task, Device(sigma=sigma))]),
        )


def moved(law: WeightDistribution, theta: Tensor) -> WeightDistribution:
    """The same spread around θ."""
    return Together(theta, [Shifted(law, theta - law.mean())])


@dataclass(frozen=True)
class Shifted:
    law: WeightDistribution
    by: Tensor

    @property
    def layout(self) -> Layout:
        return self.law.layout

    def mean(self) -> Tensor:
        return self.law.mean() + self.by

    def variance(self) -> Tensor:
        return self.law.variance()

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.law.sample(count, generator=generator) + self.by


def in_a_pool(task: Task, data: ImageData, seed: int) -> WeightDistribution:
    """What a pool holds of the network that it shares with another of its kind, trained from another seed."""
    torch.manual_seed(seed + 100)
    other = copy.deepcopy(task.model)
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    second = Task("other", other, F.cross_entropy, data.train, data.test, batch_size=64)
    for _ in epochs(second, torch.optim.Adam(other.parameters(), 2e-3), count=2):
        pass
    pool = Pool(capacity=round(1.2 * task.layout.size))
    for tenant in (second, task):
        pool.add(tenant, importance=ggn(tenant, images=300), placement="pages", page_size=32)
    return pool[task.name]


def recorded(task: Task, data: ImageData) -> Moments:
    """Three epochs of a copy at a constant rate, every fifth iterate."""
    copied = Task(task.name, copy.deepcopy(task.model), F.cross_entropy, data.train, data.test, batch_size=32)
    moments = Moments(task.layout, rows=RowLog(":memory:"))

    def fifth(theta: Tensor, *, step: int) -> None:
        if step % 5 == 0 and moments.count < 60:
            moments.update(theta, step=step)

    for _ in epochs(copied, torch.optim.SGD(copied.model.parameters(), lr=0.01), count=3, each_step=fifth):
        pass
    return moments


def theory(tasks: list[Task], data: ImageData, chosen: argparse.Namespace) -> None:
    head = ("law", "setting", "predicted", "along", "measured", "/ predicted", "/ along", "")
    for number, task in enumerate(tasks):
        h, g = ggn(task), gradient(task)
        rows = [compared(task, h, g, *law, chosen.samples) for law in laws(task, h, data, number)]
        loss = sum(float(task.loss(task.predict(task.theta(), x), y)) * len(y) for x, y in task.batches())
        title = (
            f"{task.name}: {task.layout.size:,} weights, mean loss {loss / chosen.examples:.4f} on {chosen.examples:,}"
        )
        table(title, [head, *(row.cells() for row in rows)])
        diagonal = [row.compared for row in rows]
        whole = [replace(row.compared, predicted=row.along) for row in rows if row.along > 0]
        for law in dict.fromkeys(point.law for point in diagonal):
            for name, points in (("predicted", diagonal), ("along", whole)):
                some = sorted((point for point in points if point.law == law), key=lambda point: point.predicted)
                print(f"  {law}, {name}: {reach(some)}")
        if chosen.figure is not None and number == 0:
            shown = [point for point in diagonal if point.law not in COUPLED]
            shown += [replace(point, law=f"{point.law} *") for point in whole if point.law in COUPLED]
            save_figure(theory_figure(shown, title=f"{task.name}, * along"), chosen.figure)


def reach(some: list[Compared]) -> str:
    """From where to where the ratio stays within 1.5."""
    good = [each for each in some if each.within]
    if not good:
        return "never within 1.5"
    beyond = [each for each in some if each.predicted > good[-1].predicted]
    holes = len([each for each in some if good[0].predicted <= each.predicted <= good[-1].predicted]) - len(good)
    text = f"within 1.5 from {good[0].predicted:.2g} to {good[-1].predicted:.2g}"
    text += f" but for {holes}" if holes else ""
    return text + (f"; ends before {beyond[0].predicted:.2g}, {beyond[0].setting}" if beyond else "; no end found")


def per_example(task: Task, law: WeightDistribution) -> tuple[Tensor, Tensor]:
    """NLL and correctness of each test example under a point law."""
    found = evaluate(task, law, samples=1, batch_norm="keep")
    true = found.probabilities.gather(1, found.targets[:, None])[:, 0]
    return -true.clamp(min=1e-12).log(), (found.probabilities.argmax(1) == found.targets).double()


def bits_of(format: Format) -> float:
    """Of a code, in the mean over rows."""
    if isinstance(format, Mixed):
        return sum(bits_of(format.formats[int(row, 36)]) for row in format.rows) / len(format.rows)
    assert isinstance(format, BlockFloatingPoint)
    return format.bits


def mixed(kinds: dict[str, list[Task]]) -> None:
    """One format for all tensors against the best mix within its bytes, format by tensor and format by row."""
    rows = [("network", "bytes", "uniform", "nll", "mixed by", "nll", "nll saved", "accuracy gained", "mean bits")]
    formats = [BlockFloatingPoint(bits, block=ByDimensions()) for bits in range(2, 9)]
    for kind, tasks in kinds.items():
        scores = [ggn(task) for task in tasks]
        for bits in (3, 4, 5):
            for name in ("tensor", "row"):
                found, means = [], []
                for task, h in zip(tasks, scores, strict=True):
                    theta, one = task.theta(), Point(task.theta(), task.layout)
                    budget = float(format_options(theta, task.layout, h, formats).costs["bytes"][:, bits - 2].sum())
                    named = len(task.layout.entries)  # bytes that tell the formats; by row they are counted already
                    chosen = mixed_precision(theta, task.layout, h, bytes=budget - named, formats=formats, by=name)
                    after = pack(theta, task.layout, chosen)
                    assert after.nbytes <= budget
                    found.append((*per_example(task, Rounded(one, formats[bits - 2])), *per_example(task, after)))
                    means.append(sum(bits_of(chosen[e.name]) * e.size for e in task.layout.entries) / task.layout.size)
                nll, right, after_nll, after_right = (torch.stack(part).mean(0) for part in zip(*found, strict=True))
                saved, gained = Estimate.over(nll - after_nll), Estimate.over(after_right - right)
                cells = (f"{float(nll.mean()):.3f}", name, f"{float(after_nll.mean()):.3f}", saved.text, gained.text)
                rows.append((kind, f"{budget:,.0f}", f"{bits} bits", *cells, f"{sum(means) / len(means):.2f}"))
    title = f"mixed precision at the bytes of one format, {len(tasks)} networks each, paired by test example"
    table(title, rows)


def cycles(tasks: list[Task], passes: int) -> None:
    rows = [
        (
            "network",
            "cells / weight",
            "cycles",
            "bits and cycles",
            "cycles alone",
            "bits alone",
            "over cycles",
            "over bits",
        )
    ]
    for task in tasks:
        h, device = ggn(task), Device(weight_bits=4, cell_bits=1, sigma=0.3, verified_sigma=0.03)
        cells = Cells.of(task, device)
        count = round(0.05 * cells.count * device.cells)
        found = allocate(cell_options(h, cells), {"cycles": count}, exact=False)
        bought = found.choice.view(device.cells, -1).bool() & cells.on_device
        same = torch.equal(bought, select_cells(h, cells, count=count))
        print(f"\n{task.name}: {count:,} cycles by allocate {'are' if same else 'ARE NOT'} the cells of the ranking")
        for share in (0.01, 0.03, 0.1):
            budget = {"cells": 4.0 * cells.count, "cycles": share * 4 * cells.count}
            menus = {
                "both": bits_and_cycles(h, task, device, bits=(2, 3, 4, 5, 6, 8), shares=SHARES),
                "cycles alone": bits_and_cycles(h, task, device, bits=(4,), shares=SHARES),
                "bits alone": bits_and_cycles(h, task, device, bits=(2, 3, 4, 5, 6, 8), shares=(share,)),
            }
            chips = {name: menu.law(allocate(menu.options, budget)) for name, menu in menus.items()}
            against = {
                other: compare(task, {other: chips[other], "both": chips["both"]}, passes=passes)
                for other in list(chips)[1:]
            }
            accuracy = [against["cycles alone"].accuracy[name].text for name in ("both", "cycles alone")]
            accuracy.append(against["bits alone"].accuracy["bits alone"].text)
            gains = [against[other].difference["both"].text for other in against]
            rows.append((task.name, "4", f"{share:.0%}", *accuracy, *gains))
    table(f"accuracy on noisy chips, {passes} passes over the test data", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="mnist:FOLDER, parquet:FOLDER, or digits")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--train", type=int, default=20_000, help="training examples, at most")
    parser.add_argument("--examples", type=int, default=1_000, help="training examples that losses are measured on")
    parser.add_argument("--batch", type=int, default=25, help="test examples to a chip")
    parser.add_argument("--samples", type=int, default=12, help="draws of each law")
    parser.add_argument("--passes", type=int, default=2, help="over the test data, for chips")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind, for mixed precision")
    parser.add_argument("--parts", nargs="+", default=["theory", "mixed", "cycles"])
    parser.add_argument("--figure", type=Path, help="draw measured by predicted there (.svg or .png)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data, small = load(chosen.data), chosen.data == "digits"
    data = replace(data, train=tuple(part[: chosen.train] for part in data.train))
    kinds = {"mlp": lambda: mlp(data.train[0][0].numel(), 48, 32, 24, 10)}
    kinds["convolutions"] = lambda: small_cnn(1, 8, batch_norm=False) if small else build("lenet_mnist")
    tasks = {}
    for kind, make in kinds.items():
        tasks[kind] = []
        for seed in range(chosen.seeds):
            torch.manual_seed(seed)
            task = trained(kind, make(), data, chosen)
            tasks[kind].append(task)
            print(f"{task!r}: test accuracy {evaluate(task, task.theta(), batch_norm='keep').accuracy.text}")
    first = [some[0] for some in tasks.values()]
    if "theory" in chosen.parts:
        theory(first, data, chosen)
    if "mixed" in chosen.parts:
        mixed(tasks)
    if "cycles" in chosen.parts:
        cycles(first, chosen.passes)


if __name__ == "__main__":
    main()

"""The tour's other stops: a noisy device, training in 8 bits, one memory for three networks, and the budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from weightbank.budget import expected_increase, increase_along, measured_increase, mixed_precision
from weightbank.cim import Cells, Device, by_cell, by_weight, graded, program, sweep
from weightbank.curvature import ggn
from weightbank.data import digits
from weightbank.distributions import Gaussian, Moments, Point, Rounded, pack
from weightbank.distributions.distribution import WeightDistribution
from weightbank.evaluation import evaluate
from weightbank.formats import BlockFloatingPoint, ByDimensions, Per
from weightbank.lowprecision import Precision
from weightbank.paging import Pool, convert, tune
from weightbank.sizes import readable
from weightbank.task import Task, TensorBatches
from weightbank.training import epochs
from weightbank.types import Flat
from weightbank.zoo import mlp

WIDTHS, TRAINED, CHIPS, STEPS, DRAWS = (64, 48, 32), 12, 40, 400, 20


@dataclass(frozen=True)
class Stop:
    """One row of the tour's table: what was done, what it saved, what it cost."""

    job: str
    what: str
    saved: str
    accuracy: str
    before: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row."""
        return (self.job, self.what, self.saved, self.before, self.accuracy)


COLUMNS = ("job", "what", "saved", "before", "after")


@dataclass(frozen=True)
class Theory:
    """The increase of the mean training loss under a law: expected, and measured on draws."""

    law: str
    expected: float
    measured: float
    stderr: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The row."""
        spread = f" ± {self.stderr:.4f}" if self.stderr else ""
        return (self.law, f"{self.expected:.4f}", f"{self.measured:.4f}{spread}")


THEORY = ("the weights are", "loss should rise by", "loss rises by")


def clean_digits(width: int, seed: int) -> Task:
    """A classifier of all digits, not trained yet."""
    data = digits()
    torch.manual_seed(seed)
    train = TensorBatches(*data.train, 32, shuffle=True, generator=torch.Generator().manual_seed(seed))
    return Task(f"digits {width}", mlp(64, width, 10), F.cross_entropy, train, TensorBatches(*data.test, 50))


def trained(task: Task) -> Task:
    """The same task, its model trained."""
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in epochs(task, optimizer, count=TRAINED):
        pass
    return task


def stops(seed: int) -> tuple[list[Stop], list[Theory], dict[str, Any]]:
    """Visit the other jobs on three small networks of digits: rows of two tables, and the sweep's document."""
    networks = [trained(clean_digits(width, seed)) for width in WIDTHS]
    task = networks[0]
    h = ggn(task)
    device, document = noisy(task, h, seed)
    found = [*device, *eight_bits(seed), *together(networks, seed), *few_bits(task, h)]
    return found, theory(task, h, seed), document


def noisy(task: Task, h: Flat, seed: int) -> tuple[list[Stop], dict[str, Any]]:
    """The network on a device whose cells err; 1 % of the write cycles of verifying all."""
    cells = Cells.of(task, Device(weight_bits=8, cell_bits=1, sigma=0.5, verified_sigma=0.03))
    magnitude = by_weight(cells, task.theta().abs())
    ways = {
        "magnitude": magnitude,
        "weights": by_weight(cells, h),
        "cells": by_cell(cells, h),
        "graded": graded(cells, h),
    }
    found = sweep(task, ways, (0.0, 0.01, 0.1, 1.0), chips=CHIPS, seed=seed)
    at = {(row.method, row.write_cycles > 0 and row.budget): row for row in found.rows}
    rows: list[Stop] = []
    for method, budget in (("magnitude", 0.01), ("weights", 0.01), ("graded", 0.01), ("graded", 0.1)):
        row = at[method, budget]
        saved = f"{1 - row.write_cycles:.0%} of the cycles"
        rows.append(Stop("noisy device", f"verify by {method}", saved, _points(row.accuracy), _percent(found.clean)))
    return rows, found.to_dict()


def eight_bits(seed: int) -> list[Stop]:
    """The same network trained and kept in 8 bits."""
    task = clean_digits(WIDTHS[0], seed)
    before = _accuracy(trained(clean_digits(WIDTHS[0], seed)), None)
    average = Moments(task.layout, variance=False)
    with Precision.swalp(bits=8, seed=seed).attached(task.model) as attached:
        optimizer = attached.optimizer(
            torch.optim.SGD(task.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        )
        for epoch in epochs(task, optimizer, count=TRAINED):
            if epoch >= TRAINED // 2:
                average.update(task.theta())
    packed = pack(average.mean(), task.layout, BlockFloatingPoint(8, Per(0)))
    saved = f"{readable(packed.nbytes)} for {readable(4 * task.layout.size)}"
    return [Stop("low precision", "train in 8 bits, average, pack", saved, _accuracy(task, packed), before)]


def together(networks: Sequence[Task], seed: int) -> list[Stop]:
    """The three networks in the memory of the largest, in float32 and then in 4 bits."""
    pool = Pool(max(task.layout.size for task in networks) + 128, seed=seed)
    for task in networks:
        pool.add(task)
    tune(pool, networks, steps=STEPS, tolerance=0.05, seed=seed)
    total, found = readable(4 * sum(task.layout.size for task in networks)), []
    for format in (None, "bfp4"):
        if format is not None:
            convert(pool, format, networks, tolerance=0.05, seed=seed)
        saved = f"{readable(pool.generation.owner.nbytes)} for {total}"
        for task in networks:
            what = task.name if format is None else f"{task.name}, in 4 bits"
            found.append(Stop("one memory", what, saved, _accuracy(task, pool[task.name]), _accuracy(task, None)))
    return found


def few_bits(task: Task, h: Flat) -> list[Stop]:
    """The first network in 3 bits a weight, and in the same bytes with more bits for the rows that matter more."""
    theta, menu = task.theta(), [BlockFloatingPoint(bits, ByDimensions()) for bits in range(2, 9)]
    uniform = pack(theta, task.layout, menu[1])
    chosen = mixed_precision(theta, task.layout, h, bytes=uniform.nbytes, formats=menu, by="row")
    laws = {"3 bits in every row": uniform, "bits by row, the same bytes": pack(theta, task.layout, chosen)}
    saved, before = f"{readable(uniform.nbytes)} for {readable(4 * task.layout.size)}", _accuracy(task, None)
    return [Stop("one budget", what, saved, _accuracy(task, law), before) for what, law in laws.items()]


def theory(task: Task, h: Flat, seed: int) -> list[Theory]:
    """½ Σ h E[δ²] against the measured rise of the loss, for what each job does to the weights."""
    theta = task.theta()
    point = Point(theta, task.layout)
    device = Device(weight_bits=8, cell_bits=1, sigma=0.1)
    spread = Gaussian(task.layout, theta, torch.full_like(theta, 1e-3), None)
    laws: dict[str, WeightDistribution] = {
        "rounded to 6 bits": Rounded(point, "bfp6", "stochastic"),
        "rounded to 4 bits": Rounded(point, "bfp4", "stochastic"),
        "on a device, sigma 0.1": program(task, device),
        "normal, variance 0.001": spread,
    }
    found: list[Theory] = []
    for name, law in laws.items():
        generator = torch.Generator().manual_seed(seed)
        measured = measured_increase(task, law, DRAWS, theta=theta, generator=generator)
        found.append(Theory(name, expected_increase(h, law, theta=theta), measured.mean, measured.stderr or 0.0))
    nearest = Rounded(point, "bfp4")
    once = measured_increase(task, nearest, 1, theta=theta)
    along = increase_along(task, nearest, 1, theta=theta)
    found.append(Theory("to the nearest of 4 bits, along δ", along.mean, once.mean, 0.0))
    return found


def _accuracy(task: Task, law: WeightDistribution | None) -> str:
    theta = task.theta() if law is None else law.mean()
    return _points(evaluate(task, theta, 1, batch_norm="keep").accuracy)


def _points(estimate: Any) -> str:
    return f"{100 * estimate.mean:.1f} %" + (f" ± {100 * estimate.stderr:.1f}" if estimate.stderr else "")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"

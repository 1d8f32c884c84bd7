"""Ways to spend a budget of write cycles: which weights or cells to verify, how closely, what to read first."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from weightbank.cim.cells import Cells
from weightbank.cim.process import WriteVerify
from weightbank.cim.program import Chip
from weightbank.cim.rank import Order, benefit, rank, select, select_cells
from weightbank.cim.rule import Rule
from weightbank.cim.written import Written
from weightbank.errors import DataError, LayoutError
from weightbank.types import Flat

MENU = (math.inf, 0.48, 0.24, 0.12, 0.06, 0.03)
"""Tolerances in level steps to choose from; infinity is not to read a cell at all."""

FLOOR = 1e-3
"""The least curvature of a weight that `graded` and `read_first` reckon with, as a share of the mean curvature: one of
zero says that no training example felt the weight, not that large errors of many such weights do no harm."""


@dataclass(frozen=True, eq=False)
class Programming:
    """A chip to be, and what programming it is expected to take.

    fraction: of the cells on the device, those that are read after the first write.
    write_cycles: extra pulses as a fraction of those that verifying every cell takes (normalised write cycles).
    total_write_cycles: the same with first writes counted on both sides.
    reads: verifying reads per cell on the device.
    """

    law: Chip | Written
    rule: Rule
    fraction: float
    write_cycles: float
    total_write_cycles: float
    reads: float


Spend: TypeAlias = Callable[[float], Programming]
"""A budget, in normalised write cycles from 0 to 1, to the programming that makes the most of it."""

Policy: TypeAlias = Callable[[Cells, Flat | Order, WriteVerify | None], Spend]
"""Weights on cells, scores (curvatures, or an order) and a process to a way of spending. Without a process, cells have
one of two widths of error (`sigma` and `verified_sigma`), and effort is that of `WriteVerify.matching`."""


def by_weight(cells: Cells, scores: Flat | Order, process: WriteVerify | None = None) -> Spend:
    """Verify all cells of the best weights (the paper's); the budget is the fraction of weights on the device.

    `scores` are curvatures, in loss per squared weight, ranked by the loss that verifying saves and, where equal, by
    |w| / scale; or an order of the weights, best first, for anything else.
    """
    cells.layout.check(scores)
    order = scores if scores.dtype == torch.int64 else rank(benefit(scores, cells), tie=cells.relative)

    def spend(budget: float) -> Programming:
        return programming(cells, select(order, budget, among=cells.on_device), process)

    return spend


def by_cell(cells: Cells, scores: Flat | Order, process: WriteVerify | None = None) -> Spend:
    """Verify the best single cells; the budget is the fraction of cells on the device. `scores` are curvatures."""
    curvature = _curvature(cells, scores, "by_cell")

    def spend(budget: float) -> Programming:
        return programming(cells, select_cells(curvature, cells, budget), process)

    return spend


def by_significance(cells: Cells, scores: Flat | Order, process: WriteVerify | None = None) -> Spend:
    """Verify the most significant cells of all weights, then the next; within a place as `by_weight`. A baseline."""
    order = scores if scores.dtype == torch.int64 else rank(benefit(scores, cells), tie=cells.relative)

    def spend(budget: float) -> Programming:
        _check(budget)
        whole, share = divmod(budget * cells.device.cells, 1)
        fractions = [1.0] * int(whole) + [share] + [0.0] * cells.device.cells
        rows = [select(order, part, among=cells.on_device) for part in fractions[: cells.device.cells]]
        return programming(cells, torch.stack(rows), process)

    return spend


def graded(
    cells: Cells,
    scores: Flat | Order,
    process: WriteVerify | None = None,
    *,
    menu: Sequence[float] = MENU,
    read_price: float = 0.0,
    floor: float = FLOOR,
) -> Spend:
    """Give each cell a tolerance from a menu: loose where the loss hardly feels it, tight where it does.

    Minimises Σ ½ h scale² 4^(-i m) var_k + λ (pulses_k + read_price · reads_k), var, pulses and reads as of
    `WriteVerify.outcome`; the multiplier λ is the largest effort the budget allows. No h counts for less than `floor`
    times the mean of the weights on the device, so that a large budget reaches weights of no curvature, too.
    """
    chosen = process or WriteVerify.matching(cells.device)
    return _cheapest(cells, scores, chosen, [(t, t) for t in menu], read_price, floor)


def read_first(
    cells: Cells,
    scores: Flat | Order,
    process: WriteVerify | None = None,
    *,
    tolerances: Sequence[float] | None = None,
    read_price: float = 0.0,
    floor: float = FLOOR,
) -> Spend:
    """Read the programmed cells, and verify those whose error was in fact harmful: where h error² is large.

    Each cell has a limit on its first read, as large as λ allows, beyond which it is verified to the process's
    tolerance, or to the best of several `tolerances`. Cells whose limit would be six standard deviations are not read.
    No h counts for less than `floor` times the mean of the weights on the device.
    """
    chosen = process or WriteVerify.matching(cells.device)
    sigma = _sigma(cells)
    options = [(math.inf, chosen.tolerance)]
    for tolerance in tolerances or (chosen.tolerance,):
        steps = math.log(max(6 * sigma / tolerance, 1.0)) / 60
        options += [(tolerance * math.exp(steps * step), tolerance) for step in range(61)]
    return _cheapest(cells, scores, chosen, options, read_price, floor)


def compensate(
    cells: Cells,
    scores: Flat | Order,
    process: WriteVerify | None = None,
    *,
    base: Policy = graded,
    share: float = 1.0,
) -> Spend:
    """As `base`, with the best `share` of the weights written cell by cell, later cells taking up the errors read.

    Costs no pulse, but one read for each cell of those weights but the last, which `reads` counts.
    """
    chosen = process or WriteVerify.matching(cells.device)
    inner = base(cells, scores, chosen)
    order = scores if scores.dtype == torch.int64 else rank(benefit(scores, cells), tie=cells.relative)
    absorb = select(order, share, among=cells.on_device)

    def spend(budget: float) -> Programming:
        found = inner(budget)
        law = Written(cells, chosen, found.rule, absorb)
        return replace(found, law=law, reads=law.effort.reads / law.effort.cells)

    return spend


def programming(cells: Cells, verified: Bool[Tensor, "*M P"], process: WriteVerify | None = None) -> Programming:
    """Verify what a mask of weights (P,) or cells (M, P) marks; its effort beside verifying everything."""
    verified = verified & cells.on_device
    marked = int(verified.sum()) * (cells.device.cells if verified.ndim == 1 else 1)
    fraction = marked / max(1, cells.count * cells.device.cells)
    rule = Rule.of(verified, process or WriteVerify())
    law = Chip(cells, verified) if process is None else Written(cells, process, rule)
    pulses = _verifying_pulses(cells, process)
    total = fraction if math.isinf(pulses) else (1 + fraction * (pulses - 1)) / pulses
    reads = 0.0 if fraction == 0 else fraction * pulses
    return Programming(law, rule, fraction, fraction, total, reads)


def _cheapest(
    cells: Cells,
    scores: Flat | Order,
    process: WriteVerify,
    options: list[tuple[float, float]],
    read_price: float,
    floor: float,
) -> Spend:
    """The best (limit, tolerance) for each cell at a common price of a pulse, and the price that meets the budget."""
    if not 0 <= floor < math.inf:
        raise DataError(f"floor={floor}; wanted 0 or more, as a share of the mean curvature")
    sigma = _sigma(cells)
    curvature = _curvature(cells, scores, "graded and read-first programming").double().clamp(min=0).to("cpu")
    least = floor * float(curvature[cells.on_device].sum()) / max(1, cells.count)
    worth = 0.5 * curvature.clamp(min=least) * cells.scale.double().square()
    hull, corners = _hull(process, sigma, [(math.inf, process.tolerance), *options], read_price)
    outcomes = [process.outcome(sigma, limit=limit, tolerance=t) for limit, t in hull]
    steps = torch.tensor([b.pulses - a.pulses for a, b in pairwise(outcomes)], dtype=torch.float64)
    ordered = worth[cells.on_device].sort().values
    squares = [place**2 for place in cells.device.places]
    full = process.outcome(sigma).pulses - 1
    number = cells.count * cells.device.cells

    def extra(price: float) -> float:
        """Extra pulses per cell when a pulse is worth `price`."""
        total = 0.0
        for square in squares:
            bounds = corners * (price / square)
            total += float(((len(ordered) - torch.searchsorted(ordered, bounds)) * steps).sum())
        return total / max(1, number)

    def spend(budget: float) -> Programming:
        _check(budget)
        price = _price(extra, budget * full, float(ordered[-1]) if len(ordered) else 0.0)
        rows = []
        for square in squares:
            grades = torch.searchsorted(corners * (price / square), worth, right=True)
            rows.append(torch.where(cells.on_device & (worth > 0), grades, 0).to(torch.uint8))
        limits, tolerances = (tuple(pair[i] for pair in hull) for i in (0, 1))
        rule = Rule(torch.stack(rows), limits, tolerances)
        law = Written(cells, process, rule)
        effort = law.effort
        everything = process.outcome(sigma).effort(effort.cells)
        return Programming(
            law,
            rule,
            int(rule.read.sum()) / max(1, number),
            effort.write_cycles(everything),
            effort.total_write_cycles(everything),
            effort.reads / effort.cells,
        )

    return spend


def _check(budget: float) -> None:
    if not 0 <= budget <= 1:
        raise DataError(f"a budget of {budget} came; wanted 0 to 1, a fraction of the cycles that verifying all takes")


def _hull(
    process: WriteVerify, sigma: float, options: list[tuple[float, float]], read_price: float
) -> tuple[list[tuple[float, float]], Float64[Tensor, " G"]]:
    """The options that are best at some price, cheapest first, and the worth per price at which each gives way."""
    points = []
    for limit, tolerance in dict.fromkeys(options):
        tolerance_ = process.tolerance if math.isinf(tolerance) else tolerance
        outcome = process.outcome(sigma, limit=limit, tolerance=tolerance_)
        points.append((outcome.pulses + read_price * outcome.reads, outcome.variance, (limit, tolerance_)))
    points.sort(key=lambda point: (point[0], point[1]))
    hull: list[tuple[float, float, tuple[float, float]]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return [p[2] for p in hull], torch.tensor([1 / _slope(a, b) for a, b in pairwise(hull)], dtype=torch.float64)


def _slope(a: tuple[float, float, tuple[float, float]], b: tuple[float, float, tuple[float, float]]) -> float:
    """Variance saved per effort."""
    return (a[1] - b[1]) / max(b[0] - a[0], 1e-300)


def _price(extra: Callable[[float], float], budget: float, worth: float) -> float:
    """The lowest price per pulse at which the effort is within the budget, to 1e-9 of itself."""
    if worth == 0 or extra(1e-30 * worth) <= budget:
        return 1e-30 * max(worth, 1e-30)
    low, high = math.log(1e-30 * worth), math.log(1e12 * worth)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if extra(math.exp(middle)) <= budget else (middle, high)
    return math.exp(high)


def _verifying_pulses(cells: Cells, process: WriteVerify | None) -> float:
    """Pulses of a cell that is verified, the first included; of the matching process if there is none."""
    sigma, verified = cells.device.sigma, cells.device.verified_sigma
    if process is None:
        if not cells.device.uniform or verified == 0:
            return math.inf
        if sigma == verified:
            return 1.0
        process = WriteVerify.matching(cells.device)
    return process.outcome(float(sigma)).pulses  # type: ignore[arg-type]


def _sigma(cells: Cells) -> float:
    if not isinstance(cells.device.sigma, float | int):
        raise DataError("graded and read-first programming need one number as sigma; use by_weight or by_cell")
    return float(cells.device.sigma)


def _curvature(cells: Cells, scores: Flat | Order, what: str) -> Flat:
    cells.layout.check(scores)
    if scores.dtype == torch.int64:
        raise LayoutError(f"{what} weighs cells against each other: pass curvatures (floating), not an order")
    return scores

"""Spend a budget where the loss falls most per unit: one option for each place (multiple-choice knapsack).

With one resource the options of a place that lie on the lower convex hull of (cost, increase) are steps of falling
worth per unit; all steps of all places in one order, best first, are taken while the budget lasts (Sinha and Zoltners,
Operations Research 27, 1979). What stops it is the price: the loss one more unit would save. With several resources all
but one are priced by bisection (Lagrange), and small problems are solved exactly by mixed-integer programming.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from weightbank.errors import CapacityError, DataError, NonFiniteError

EXACT = 4_096
"""Up to so many options in all the choice is made exactly."""

_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Options:
    """What can be done at each of G places, in M ways; a way that a place does not have costs infinity.

    Args:
        increase: expected increase of the loss, shape (G, M); see `weightbank.budget.expected_increase`.
        costs: by resource, such as "bytes" or "cycles", shape (G, M), at least 0.

    Raises `DataError` for other shapes, negative costs or no options, `NonFiniteError` for NaN.
    """

    increase: Tensor
    costs: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Check shapes and signs."""
        if self.increase.ndim != 2 or self.increase.numel() == 0 or not self.costs:
            raise DataError(f"increases of shape {tuple(self.increase.shape)} and {len(self.costs)} costs came")
        if not bool(self.increase.isfinite().all()):
            raise NonFiniteError("an expected increase is NaN or infinite; give an option that is not there no cost")
        for name, cost in self.costs.items():
            if cost.shape != self.increase.shape:
                raise DataError(f"{name}: shape {tuple(cost.shape)} came; wanted {tuple(self.increase.shape)}")
            if bool(cost.isnan().any()):
                raise NonFiniteError(f"{name}: a cost is NaN")
            if bool((cost < 0).any()):
                raise DataError(f"{name}: a cost is {float(cost.min()):g}; wanted 0 or more")


@dataclass(frozen=True, eq=False)
class Allocation:
    """One option for each place.

    choice: shape (G,), indices of options.
    increase: the expected increase of the loss, summed over places.
    spent: of each resource.
    price: the loss one more unit of each resource would save (0 where the budget is not used up).
    bound: no choice within the budget has an expected increase below this.
    """

    choice: Int64[Tensor, " G"]
    increase: float
    spent: dict[str, float]
    price: dict[str, float]
    bound: float


def allocate(options: Options, budget: Mapping[str, float], *, exact: bool | None = None) -> Allocation:
    """Choose one option for each place: the least expected increase whose costs stay within `budget`.

    Args:
        options: what can be done where.
        budget: how much of each resource there is, by the names in `options.costs`.
        exact: solve to the optimum (scipy's mixed-integer solver); None does so for up to `EXACT` options.

    Otherwise the Lagrangian choice, within `increase - bound` of the optimum. Between options of equal worth the first
    place wins. Raises `CapacityError` when even the cheapest options are too dear, `DataError` for unknown resources.
    """
    if set(budget) != set(options.costs):
        raise DataError(f"a budget for {sorted(budget)} came; the options cost {sorted(options.costs)}")
    names = list(options.costs)
    increase = options.increase.detach().to("cpu", torch.float64)
    costs = [options.costs[name].detach().to("cpu", torch.float64) for name in names]
    limits = [float(budget[name]) for name in names]
    there = torch.stack([cost.isfinite() for cost in costs]).all(0)
    if not bool(there.any(1).all()):
        place = int((~there.any(1)).nonzero()[0])
        raise DataError(f"place {place} has no option of finite cost")
    costs = [torch.where(there, cost, math.inf) for cost in costs]
    for name, cost, limit in zip(names, costs, limits, strict=True):
        least = float(cost.min(1).values.sum())
        if not least <= limit:
            raise CapacityError(f"the cheapest options need {least:,.6g} {name}, the budget is {limit:,.6g}")
    found = _solve(increase, costs, limits)
    choice, bound = found.choice, found.bound
    proven = found.feasible and float(increase.gather(1, choice[:, None]).sum()) <= bound
    if not proven and (exact or (exact is None and increase.numel() <= EXACT)):
        choice, bound = _exactly(increase, costs, limits)
    elif not found.feasible:
        raise CapacityError(f"no choice of options was found within {dict(budget)}; raise one of the budgets")
    pick = choice[:, None]
    return Allocation(
        choice,
        float(increase.gather(1, pick).sum()),
        {name: float(cost.gather(1, pick).sum()) for name, cost in zip(names, costs, strict=True)},
        dict(zip(names, found.prices, strict=True)),
        min(bound, float(increase.gather(1, pick).sum())),
    )


class _Found(NamedTuple):
    choice: Int64[Tensor, " G"]
    prices: list[float]
    bound: float
    feasible: bool


def _solve(increase: Tensor, costs: list[Tensor], limits: list[float]) -> _Found:
    """Resources after the first are priced by bisection; the first is spent step by step."""
    if len(costs) == 1:
        return _steps(increase, costs[0], limits[0])
    cost, limit = costs[-1], limits[-1]

    def at(price: float) -> tuple[_Found, bool]:
        charged = torch.where(cost.isfinite(), increase + price * cost, increase)
        found = _solve(charged, costs[:-1], limits[:-1])
        spent = float(cost.gather(1, found.choice[:, None]).sum())
        return found._replace(bound=found.bound - price * limit), found.feasible and spent <= limit

    free, fits = at(0.0)
    if fits:
        return free._replace(prices=[*free.prices, 0.0])
    finite = cost.isfinite()
    spread = float(increase.max() - increase.min()) or 1.0
    gaps = cost[finite & (cost > 0)]
    low, high = 0.0, spread / float(gaps.min() if gaps.numel() else 1.0)
    best, bound = None, free.bound
    for _ in range(_HALVINGS):  # up to where a unit is worth more than anything
        found, fits = at(high)
        bound = max(bound, found.bound)
        if fits:
            best = (found, high)
            break
        low, high = high, 2 * high
    if best is None:
        return _Found(free.choice, [*free.prices, high], bound, False)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2 if low > 0 else high / 1024
        found, fits = at(middle)
        bound = max(bound, found.bound)
        if fits:
            high = middle
            best = (found, middle)
        else:
            low = middle
        if high - low <= 1e-9 * high:
            break
    found, price = best
    return _Found(found.choice, [*found.prices, price], bound, True)


def _steps(increase: Tensor, cost: Tensor, limit: float) -> _Found:
    """The hull steps of all places in one order, best first, while the budget lasts; then whatever still fits."""
    places = torch.arange(len(increase))
    # the cheapest option of each place, and of equally cheap ones the best
    cheapest = cost.min(1).values
    current = torch.where(cost == cheapest[:, None], increase, math.inf).argmin(1)
    start = current.clone()
    taken: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(increase.shape[1] - 1):
        at_cost, at_increase = cost[places, current], increase[places, current]
        more, less = cost - at_cost[:, None], at_increase[:, None] - increase
        worth = torch.where((more > 0) & more.isfinite() & (less > 0), less / more, -1.0)
        best = worth.max(1).values
        far = torch.where(worth == best[:, None], more, -1.0).argmax(1)  # of equal slopes the longest step
        where = (best > 0).nonzero()[:, 0]
        if not where.numel():
            break
        to = far[where]
        taken.append((where, to, best[where], more[where, to], less[where, to]))
        current[where] = to
    choice = start
    base = float(increase[places, start].sum())
    left = limit - float(cheapest.sum())
    if not taken:
        return _Found(choice, [0.0], base, left >= 0)
    where, to, worth, more, less = (torch.cat(parts) for parts in zip(*taken, strict=True))
    order = worth.argsort(descending=True, stable=True)
    paid = more[order].cumsum(0)
    count = int(torch.searchsorted(paid, torch.tensor(left * (1 + 1e-12)), right=True))
    whole = order[:count]
    reached = torch.zeros(len(order), dtype=torch.bool)
    reached[whole] = True
    first = 0
    for at, option, *_ in taken:  # a place's steps come in the order of its rounds
        here = reached[first : first + len(at)]
        choice[at[here]] = option[here]
        first += len(at)
    saved = float(less[whole].sum())
    left -= float(more[whole].sum())
    if count == len(order):
        return _Found(choice, [0.0], base - saved, True)
    blocked = order[count]
    price = float(worth[blocked])
    bound = base - saved - max(left, 0.0) * price
    _fill(choice, increase, cost, left)
    return _Found(choice, [price], bound, True)


def _fill(choice: Tensor, increase: Tensor, cost: Tensor, left: float) -> None:
    """Spend what is left of the budget on single changes of place, the most useful first."""
    places = torch.arange(len(choice))
    for _ in range(64):
        more = cost - cost[places, choice][:, None]
        less = increase[places, choice][:, None] - increase
        gain = torch.where((more <= left) & more.isfinite() & (less > 0), less, -1.0)
        value, index = gain.reshape(-1).max(0)
        if float(value) <= 0:
            return
        place, option = divmod(int(index), cost.shape[1])
        left -= float(more[place, option])
        choice[place] = option


def _exactly(increase: Tensor, costs: list[Tensor], limits: list[float]) -> tuple[Int64[Tensor, " G"], float]:
    import numpy as np
    from scipy import optimize, sparse

    there = torch.stack([cost.isfinite() for cost in costs]).all(0).reshape(-1).numpy()
    groups, options = increase.shape
    scale = max(float(increase.abs().max()), 1e-300)
    once = sparse.kron(sparse.eye(groups), np.ones((1, options)), format="csr")
    within = [torch.where(cost.isfinite(), cost, 0.0).reshape(1, -1).numpy() for cost in costs]
    result = optimize.milp(
        (increase / scale).reshape(-1).numpy(),
        constraints=[
            optimize.LinearConstraint(once, 1, 1),
            *(
                optimize.LinearConstraint(row / max(limit, 1e-300), -np.inf, 1.0 + 1e-12)
                for row, limit in zip(within, limits, strict=True)
            ),
        ],
        bounds=optimize.Bounds(0, there.astype(float)),
        integrality=np.ones(groups * options),
        options={"mip_rel_gap": 0.0, "presolve": False},  # presolving writes notes to stdout
    )
    if result.x is None:
        raise CapacityError(f"no choice of options fits all budgets at once ({result.message})")
    choice = torch.from_numpy(result.x.reshape(groups, options).argmax(1))
    return choice, float(increase.gather(1, choice[:, None]).sum())

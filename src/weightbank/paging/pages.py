"""Which page of which network stands on which physical page, so that sharing costs least.

Placing one network on what stands is an assignment problem; placing all is one with as many indices as networks,
NP-hard from three on. It is descended by assignments: each network in turn is placed anew on the others.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from weightbank.errors import CapacityError, LayoutError
from weightbank.paging.cost import sharing_cost
from weightbank.paging.matching import EXACT, match
from weightbank.paging.published import place_published
from weightbank.paging.statistics import Shared, Vector, paged
from weightbank.progress import progress

Policy = Literal["pages", "published", "random"]
_ENOUGH = 1e-4  # of the loss, what a round must gain to be followed by another
_ENOUGH_IF_MANY = 1e-2  # above what is matched exactly


def place_pages(
    weights: Sequence[Vector],
    importances: Sequence[Vector],
    *,
    pages: int,
    page_size: int,
    policy: Policy = "pages",
    generator: torch.Generator | None = None,
) -> list[Int64[Tensor, " _n"]]:
    """One page table per network (page of the network -> physical page); no network uses a physical page twice.

    Args:
        weights: one flat vector per network, shapes (P_k,).
        importances: the same shapes, loss per weight squared, not negative; all zero is allowed.
        pages: physical pages.
        page_size: weights per page; the last page of a network is filled with zeros that matter to nobody.
        policy: "pages" minimises `merge_loss`: one network after the other, then each anew on the others, until a
            round gains too little (1e-4 of the loss; 1e-2 above 1,000 pages); "published" is the greedy of the
            original (`place_published`); "random" draws.
        generator: for "published" and "random"; by default seeded with 0.

    Raises `CapacityError` when a network has more pages than there are, `NonFiniteError` for NaN or infinity,
    `CurvatureError` for negative importances, `LayoutError` for lengths that differ.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    if policy == "published":
        return place_published(weights, importances, pages=pages, page_size=page_size, generator=generator).tables
    nets = paged(weights, importances, pages=pages, page_size=page_size)
    if policy == "random":
        return [torch.randperm(pages, generator=generator)[: len(w)] for w, _ in nets]
    if policy != "pages":
        raise LayoutError(f"no placement policy '{policy}'; there are: pages, published, random")
    return _descend(nets, pages, page_size)


def assign_pages(
    weights: Vector,
    importance: Vector,
    shared: Shared,
    *,
    page_size: int,
    blocked_pages: Bool[Tensor, " Q"] | None = None,
) -> Int64[Tensor, " _n"]:
    """The cheapest page table of one more network on a pool whose tenants want `shared`; exact up to 1,000 pages.

    Args:
        weights: shape (P,).
        importance: the same shape, not negative.
        shared: the statistics of the Q page_size positions of the pool (what is left over at its end is not used).
        page_size: weights per page.
        blocked_pages: True where no page of this network may stand.

    Raises `CapacityError` when fewer pages are free than wanted; else as `place_pages`.
    """
    pages = shared.precision.numel() // max(page_size, 1)
    ((w, f),) = paged([weights], [importance], pages=pages, page_size=page_size)
    if blocked_pages is None:
        blocked_pages = torch.zeros(pages, dtype=torch.bool)
    elif len(blocked_pages) != pages:
        raise LayoutError(
            f"blocked_pages has {len(blocked_pages)} entries, the pool {pages} pages of {page_size} weights"
        )
    free = (~blocked_pages).nonzero()[:, 0]
    if len(free) < len(w):
        raise CapacityError(
            f"the network needs {len(w)} pages of {page_size} weights but only {len(free)} of {pages} are free: "
            "make the pool larger, or fewer weights exclusive"
        )
    base = (x[: pages * page_size].view(pages, page_size)[free] for x in (shared.precision, shared.mean()))
    return free[_cheapest(f, w, *base)[0]]


def merge_loss(
    weights: Sequence[Vector],
    importances: Sequence[Vector],
    tables: Sequence[Int64[Tensor, " _n"]],
    *,
    pages: int,
    page_size: int,
) -> float:
    """Σ over networks and weights of F (w - w̄)², w̄ the mean of what stands on its position weighted by importance.

    Twice what the quadratic approximation of the losses rises by when every position takes its best common value;
    summed in float64. Raises as `place_pages`, and `LayoutError` for tables that do not fit the networks.
    """
    nets = _placed(weights, importances, tables, pages, page_size)
    precision, moment = torch.zeros(2, pages, page_size, dtype=torch.float64)
    for w, f, table in nets:
        precision[table] += f
        moment[table] += f * w
    mean = torch.where(precision > 0, moment / precision, 0.0)
    return sum(float((f * (w - mean[table]) ** 2).sum()) for w, f, table in nets)


def pair_cost(
    weights: Sequence[Vector],
    importances: Sequence[Vector],
    tables: Sequence[Int64[Tensor, " _n"]],
    *,
    pages: int,
    page_size: int,
) -> float:
    """The published cost of a placement, in float64: Σ over pairs on a page, where F and G > 0, of (F + G) (w - v)²."""
    nets = _placed(weights, importances, tables, pages, page_size)
    total = 0.0
    for (w, f, table), (v, g, other) in combinations(nets, 2):
        where = torch.full((pages,), -1)
        where[other] = torch.arange(len(other))
        partner = where[table]
        met = partner >= 0
        w, f, v, g = w[met], f[met], v[partner[met]], g[partner[met]]
        total += float(((f > 0) * (g > 0) * (f + g) * (w - v) ** 2).sum())
    return total


def _placed(
    weights: Sequence[Vector], importances: Sequence[Vector], tables: Sequence[Tensor], pages: int, page_size: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per network its pages of weights and importances in float64, and its page table, checked."""
    nets = paged(weights, importances, pages=pages, page_size=page_size)
    if len(tables) != len(nets):
        raise LayoutError(f"{len(nets)} networks came with {len(tables)} page tables: one each wanted")
    for number, ((w, _), table) in enumerate(zip(nets, tables, strict=True)):
        different = len(set(table.tolist()))
        if len(table) != len(w) or different != len(table):
            raise LayoutError(f"network {number} has {len(w)} pages, its table names {different} different ones")
        if len(table) and not 0 <= int(table.min()) <= int(table.max()) < pages:
            raise LayoutError(f"the table of network {number} names pages outside 0..{pages - 1}")
    return [(w.double(), f.double(), table) for (w, f), table in zip(nets, tables, strict=True)]


def _cheapest(
    importance: Tensor,
    weights: Tensor,
    precision: Tensor,
    mean: Tensor,
    start: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Where to put each of n pages among Q, and what that costs."""
    order = importance.sum(1).argsort(descending=True, stable=True)  # the dearest choose first

    def costs(rows: Tensor, columns: Tensor) -> Tensor:
        some = order[rows]
        return sharing_cost(importance[some], weights[some], precision[columns], mean[columns])

    chosen = match(costs, len(order), len(precision), start=None if start is None else start[order])
    table = torch.empty_like(order)
    table[order] = chosen
    return table, _cost(importance, weights, precision[table], mean[table])


def _cost(f: Tensor, w: Tensor, g: Tensor, v: Tensor) -> float:
    """What it costs that each page stands where it stands."""
    f, w, g, v = f.double(), w.double(), g.double(), v.double()
    return float((f * torch.where(g > 0, g / (f + g), 0.0) * (w - v) ** 2).sum())


def _descend(nets: list[tuple[Tensor, Tensor]], pages: int, page_size: int) -> list[Tensor]:
    """Place all networks, then each anew on the others, until that gains little."""
    tables: list[Tensor] = []

    def others(number: int) -> tuple[Tensor, Tensor]:
        """Precision and mean of every page without one network, summed afresh so that rounding does not pile up."""
        shared = Shared.empty(pages * page_size)
        for k, table in enumerate(tables):
            if k != number:
                precision, moment = (x.view(pages, page_size) for x in (shared.precision, shared.moment))
                w, f = nets[k]
                precision[table] += f
                moment[table] += f * w
        return shared.precision.view(pages, page_size), shared.mean().view(pages, page_size)

    with progress("placing pages") as bar:
        loss = 0.0
        for number, (w, f) in enumerate(nets):
            table, cost = _cheapest(f, w, *others(number))
            tables.append(table)
            loss += cost
            bar.note(f"merge loss {loss:.4g}")
        gain = loss
        while gain > (_ENOUGH if pages <= EXACT else _ENOUGH_IF_MANY) * loss:
            gain = 0.0
            for number, (w, f) in enumerate(nets):
                base = others(number)
                before = _cost(f, w, *(x[tables[number]] for x in base))
                table, after = _cheapest(f, w, *base, start=tables[number])
                if after < before:
                    tables[number] = table
                    gain += before - after
            loss -= gain
            bar.note(f"merge loss {loss:.4g}")
    return tables

"""Page placement as published: by occupation, greedily (Neural Weight Virtualization, Lee and Nirjon, MobiSys 2020).

Kept for comparison, with stable ties where the original has races. It never moves a network that stands, and it
compares new weights with what the pages hold before any training: noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightbank.errors import LayoutError
from weightbank.paging.cost import published_cost
from weightbank.paging.statistics import Vector, paged

NOISE = 0.01  # standard deviation of the contents of a new memory


@dataclass(frozen=True)
class Level:
    """One call of the greedy matcher: `base` pages with `occupants` networks on them met `net` unplaced pages."""

    occupants: int
    base: int
    net: int
    cost: float


@dataclass(frozen=True)
class Published:
    """Page tables, one per network (page of the network -> physical page), and the levels each went through."""

    tables: list[Int64[Tensor, " _n"]]
    levels: list[list[Level]]


def place_published(
    weights: Sequence[Vector],
    importances: Sequence[Vector],
    *,
    pages: int,
    page_size: int,
    contents: Float[Tensor, "pages page_size"] | None = None,
    generator: torch.Generator | None = None,
) -> Published:
    """Place the networks one after the other, each on the least occupied pages first.

    The first takes the pages 0, 1, .... Each later one meets the pages with 0 occupants, then those with 1, and so on,
    until all its pages are placed. Within a level both lists are sorted by summed importance, descending; of the
    longer list the least important pages of the network wait, or the most important physical pages are left out; then
    whichever head is more important (the network's, when equal) takes the cheapest unused page of the other list.

    Args:
        weights: one flat vector per network, shapes (P_k,).
        importances: the same shapes, not negative.
        pages: physical pages.
        page_size: weights per page.
        contents: what the pages hold at matching; by default N(0, 0.01²).
        generator: draws the contents; by default seeded with 0.

    Raises `CapacityError`, `NonFiniteError`, `CurvatureError` and `LayoutError`.
    """
    nets = paged(weights, importances, pages=pages, page_size=page_size)
    if contents is None:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        contents = torch.randn(pages, page_size, generator=generator) * NOISE
    elif contents.shape != (pages, page_size):
        raise LayoutError(f"contents came as {tuple(contents.shape)}, wanted {(pages, page_size)}")
    occupants = torch.zeros(pages, page_size)
    count = torch.zeros(pages, dtype=torch.int64)
    tables: list[Tensor] = []
    levels: list[list[Level]] = []
    for w, f in nets:
        if tables:
            table, passed = place_next(w, f, contents, occupants, count)
        else:
            table, passed = torch.arange(len(w)), []
        occupants[table] += f
        count[table] += 1
        tables.append(table)
        levels.append(passed)
    return Published(tables, levels)


def place_next(
    weights: Float[Tensor, "n S"],
    importance: Float[Tensor, "n S"],
    contents: Float[Tensor, "Q S"],
    occupants: Float[Tensor, "Q S"],
    count: Int64[Tensor, " Q"],
) -> tuple[Int64[Tensor, " n"], list[Level]]:
    """The page table of one more network of n pages, and the levels it went through.

    `occupants` is the summed importance of the networks on each of Q pages, `count` how many they are.
    """
    table = torch.full((len(weights),), -1)
    levels: list[Level] = []
    number = 0
    while (waiting := (table < 0).nonzero()[:, 0]).numel():
        base = (count == number).nonzero()[:, 0]
        if base.numel():
            physical, own, cost = _match(base, waiting, weights, importance, contents, occupants)
            table[own] = physical
            levels.append(Level(number, base.numel(), waiting.numel(), cost))
        number += 1
    return table, levels


def _match(
    base: Tensor, own: Tensor, w: Tensor, f: Tensor, contents: Tensor, occupants: Tensor
) -> tuple[Tensor, Tensor, float]:
    """Pairs of physical and own pages, as many as the shorter list has, and what they cost together."""
    held, wanted = occupants[base].double().sum(1), f[own].double().sum(1)
    size = min(base.numel(), own.numel())
    by_held = held.argsort(descending=True, stable=True)[base.numel() - size :]
    by_wanted = wanted.argsort(descending=True, stable=True)[:size]
    base, own = base[by_held], own[by_wanted]
    held_list, wanted_list = held[by_held].tolist(), wanted[by_wanted].tolist()
    cost = published_cost(f[own], w[own], occupants[base], contents[base]).numpy()
    row_free, column_free = [True] * size, [True] * size
    used_rows, used_columns = cost[:, 0] * 0, cost[0] * 0  # infinite where used
    partner = torch.empty(size, dtype=torch.int64)
    total = 0.0
    i = j = 0
    for _ in range(size):
        while not row_free[i]:
            i += 1
        while not column_free[j]:
            j += 1
        if held_list[j] > wanted_list[i]:
            column, row = j, int((cost[:, j] + used_rows).argmin())
        else:
            row, column = i, int((cost[i] + used_columns).argmin())
        partner[row] = column
        total += float(cost[row, column])
        row_free[row] = column_free[column] = False
        used_rows[row] = used_columns[column] = float("inf")
    return base[partner], own, total

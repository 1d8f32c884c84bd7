"""Assign rows to columns at the least total cost: exactly up to 1,000 columns, by the best exchanges above.

The exact solver is the shortest augmenting path of Crouse (2016), the one for few pairs the sparse form of Jonker and
Volgenant (1987), both in scipy. The time of the first grows about tenfold per doubling on costs as uneven as those of
pages; the second takes each column's 32 most promising exchanges, and comes close to the optimum in two or three calls.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

EXACT = 1000
PARTNERS = 32
_CHUNK = 256
_GRAIN = 1e-2

Index: TypeAlias = Int64[Tensor, " _n"]
Costs: TypeAlias = Callable[[Index, Index], Float[Tensor, "_rows _columns"]]
"""The costs, not negative, of some rows (int64 indices) against some columns, shape (rows, columns)."""


def match(costs: Costs, rows: int, columns: int, *, start: Index | None = None) -> Index:
    """A column for each row, no column twice; `rows` is at most `columns`.

    Above `EXACT` columns it begins with `start`, by default the greedy choice (rows in their order, so put the dearest
    first), and takes the pairs that the `PARTNERS` best exchanges of each row with others would make: the result is the
    best assignment of these pairs, so not worse than `start` up to a hundredth of its cost, by which costs are rounded.
    It holds 256 rows of costs and up to 64 pairs per column at a time, never the whole matrix.
    """
    if rows == 0:
        return torch.empty(0, dtype=torch.int64)
    if columns <= EXACT:
        return exact(costs(torch.arange(rows), torch.arange(columns)))
    return promising(costs, rows, columns, start=start)


def exact(cost: Float[Tensor, "rows columns"]) -> Int64[Tensor, " rows"]:
    """The assignment of the least total cost; rows at most columns."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def promising(costs: Costs, rows: int, columns: int, *, start: Index | None = None) -> Index:
    """The best assignment among those of `start`, or of the greedy choice, and its most promising exchanges."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    chosen = greedy(costs, rows, columns) if start is None else start
    free = torch.ones(columns, dtype=torch.bool)
    free[chosen] = False
    held = torch.cat([chosen, free.nonzero()[:, 0]])  # rows beyond the last are there for the free columns, at no cost
    every_row = torch.arange(rows)
    now = torch.cat([costs(some, chosen[some]).diagonal() for some in torch.split(every_row, _CHUNK)])
    grain = float(now.double().mean()) * _GRAIN
    if grain == 0:
        return chosen
    now = nn.functional.pad(now, (0, columns - rows))
    pairs, values = [every_row * columns + chosen], [now[:rows]]
    for some in torch.split(torch.arange(columns), _CHUNK):
        real = some[some < rows]
        there = nn.functional.pad(costs(real, held), (0, 0, 0, len(some) - len(real)))  # the costs of moving to others
        back = nn.functional.pad(costs(every_row, held[some]), (0, 0, 0, columns - rows)).T  # and of their moving here
        rise = there + back - now[some, None] - now
        near = rise.topk(min(PARTNERS, columns), dim=1, largest=False, sorted=False).indices
        pairs += [(some[:, None] * columns + held[near]).view(-1), (near * columns + held[some, None]).view(-1)]
        values += [there.gather(1, near).view(-1), back.gather(1, near).view(-1)]
    pair, first = np.unique(torch.cat(pairs).numpy(), return_index=True)
    value = torch.cat(values).double().numpy()[first]
    inside = pair < rows * columns
    steps = np.rint(value[inside] / grain) + 1  # 0 were no pair
    graph = csr_array((steps, np.divmod(pair[inside], columns)), shape=(rows, columns))
    return torch.from_numpy(min_weight_full_bipartite_matching(graph)[1]).long()


def greedy(costs: Costs, rows: int, columns: int) -> Index:
    """Each row in turn takes the cheapest column that is left, the first of equal ones."""
    chosen, everywhere = torch.empty(rows, dtype=torch.int64), torch.arange(columns)
    used = np.zeros(columns, np.float32)
    for some in torch.split(torch.arange(rows), _CHUNK):
        for row, cost in zip(some.tolist(), costs(some, everywhere).numpy(), strict=True):
            chosen[row] = column = int((cost + used).argmin())
            used[column] = np.inf
    return chosen

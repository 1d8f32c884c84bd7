"""Place each tensor of a network as one contiguous run in the pool, where sharing costs least.

With the cost of every tensor at every offset known, the best offsets for a given order of the tensors come out of a
recursion from left to right, and the best order of a dozen tensors out of the same recursion over their subsets (as
in Held and Karp, 1962). More tensors are ordered by random restarts and exchanges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from weightbank.errors import CapacityError, LayoutError
from weightbank.paging.cost import offset_cost
from weightbank.paging.statistics import Shared, Vector, checked
from weightbank.progress import track

_SLOTS = 4096  # offsets tried per tensor, where the pool has room for so coarse a grid
_TABLE = 2**25  # entries of the recursion over subsets, 4 bytes each


def place_extents(
    tensors: Sequence[Vector],
    importances: Sequence[Vector],
    shared: Shared,
    *,
    blocked: Bool[Tensor, " N"] | None = None,
    align: int = 16,
    evaluations: int = 3000,
    generator: torch.Generator,
) -> list[int]:
    """The offset of each tensor in the pool: multiples of `align`, runs that do not overlap, least Σ of sharing costs.

    The cost is Σ F G / (F + G) (w - v)² over the tenant's weights, (G, v) precision and mean of who is there.

    Args:
        tensors: the tenant's tensors, flat.
        importances: the same shapes, not negative.
        shared: what the N positions of the pool are wanted for.
        blocked: True where nothing of this tenant may stand.
        align: in weights; 16 float32 are the 64 bytes of a cache line.
        evaluations: how many orders of the tensors to try. Where a search over all of them costs no more (T tensors
            cost as much as 2^(T-1) orders: up to 12 by default), the result is the best there is on the grid.
        generator: draws the orders.

    Pools of more than 8192 `align` positions are searched on a coarser grid as long as the tensors fit on it. Time is
    that of at most 8192 passes over the tenant's weights, and of the search. Raises `CapacityError` when the
    tensors do not fit; `LayoutError`, `NonFiniteError`, `CurvatureError` for vectors that do not go together.
    """
    size = shared.precision.numel()
    if len(tensors) != len(importances):
        raise LayoutError(f"{len(tensors)} tensors came with {len(importances)} importances: one each wanted")
    if blocked is not None and blocked.numel() != size:
        raise LayoutError(f"blocked has {blocked.numel()} entries, the pool {size} positions")
    if align < 1:
        raise LayoutError(f"align = {align}: offsets are multiples of it, take 1 or more")
    pairs = [checked(w, f, f"tensor {number}") for number, (w, f) in enumerate(zip(tensors, importances, strict=True))]
    taken = torch.zeros(size, dtype=torch.bool) if blocked is None else blocked.cpu()
    present = [number for number, (w, _) in enumerate(pairs) if w.numel()]
    offsets = [0] * len(pairs)
    if not present:
        return offsets
    mean = shared.mean()
    stride = align
    while size // (2 * stride) >= _SLOTS:
        stride *= 2
    while stride >= align:
        grid = _Grid.of([pairs[number] for number in present], shared.precision, mean, taken, stride)
        found = grid.search(evaluations, generator)
        if found is not None:
            for number, slot in zip(present, found, strict=True):
                offsets[number] = slot * stride
            return offsets
        stride //= 2
    raise _does_not_fit([w.numel() for w, _ in pairs], taken, align)


@dataclass(frozen=True)
class _Grid:
    """The cost of T tensors at each of M slots (infinite where one cannot stand), and how many slots each takes."""

    costs: NDArray[np.float32]
    lengths: list[int]

    @classmethod
    def of(
        cls, pairs: list[tuple[Tensor, Tensor]], precision: Tensor, mean: Tensor, taken: Tensor, stride: int
    ) -> "_Grid":
        size = taken.numel()
        before = torch.cat([torch.zeros(1, dtype=torch.int64), taken.cumsum(0)])
        costs = np.full((len(pairs), -(-size // stride)), np.inf, np.float32)
        for row, (w, f) in zip(costs, pairs, strict=True):
            n = w.numel()
            if n <= size:
                cost = offset_cost(f, w, precision, mean, stride)
                cost[before[n::stride][: len(cost)] > before[: size - n + 1 : stride]] = torch.inf
                row[: len(cost)] = cost
        return cls(costs, [-(-w.numel() // stride) for w, _ in pairs])

    def search(self, evaluations: int, generator: torch.Generator) -> list[int] | None:
        """The slot of each tensor in the best placement found, None when none was."""
        count, slots = self.costs.shape
        if sum(self.lengths) > slots or np.isinf(self.costs).all(1).any():
            return None
        if 2 ** (count - 1) <= evaluations and 2**count * slots <= _TABLE:
            return self.all_orders()
        return self.some_orders(evaluations, generator)

    def all_orders(self) -> list[int] | None:
        """The best placement: the least cost of every subset of tensors in the first 0..M slots, from left to right."""
        count, slots = self.costs.shape
        best = np.zeros((2**count, slots + 1), np.float32)
        for subset in range(1, 2**count):
            row = best[subset]
            row[:] = np.inf
            for t in range(count):
                if subset >> t & 1:
                    length = self.lengths[t]
                    np.minimum(row[length:], self._with(t, best[subset ^ 1 << t]), out=row[length:])
            np.minimum.accumulate(row, out=row)
        subset, end, places = 2**count - 1, slots, [0] * count
        if np.isinf(best[subset, end]):
            return None
        while subset:
            end = int((best[subset] == best[subset, end]).argmax())
            value = best[subset, end]
            for t in range(count):
                place = end - self.lengths[t]
                rest = subset ^ 1 << t
                if subset >> t & 1 and place >= 0 and best[rest, place] + self.costs[t, place] == value:
                    places[t], subset, end = place, rest, place
                    break
        return places

    def some_orders(self, evaluations: int, generator: torch.Generator) -> list[int] | None:
        """The best of many orders: exchanges of two tensors from several starts, as long as they help."""
        count = len(self.lengths)
        decreasing = sorted(range(count), key=lambda t: -self.lengths[t])
        starts = [self._first_fit(decreasing), list(range(count)), decreasing]
        rows: list[NDArray[np.float32]] = []
        order, value = starts[0], math.inf
        best, best_order = math.inf, starts[0]
        patience = stuck = 4 * count
        for _ in track(range(evaluations), "placing extents"):
            if stuck >= patience:
                trial = starts.pop(0) if starts else torch.randperm(count, generator=generator).tolist()
                first, value, stuck = 0, math.inf, 0
            else:
                i, j = sorted(torch.randint(count, (2,), generator=generator).tolist())
                trial, first = order.copy(), i
                trial[i], trial[j] = trial[j], trial[i]
            tried = self._recursion(trial, rows[: first + 1], value)
            cost = float(tried[-1][-1])
            stuck = 0 if cost < value else stuck + 1
            if cost <= value:  # else it may have ended early
                order, rows, value = trial, tried, cost
            if cost < best:
                best, best_order = cost, trial
        return None if math.isinf(best) else self._places(best_order)

    def _recursion(
        self, order: list[int], known: Sequence[NDArray[np.float32]] = (), limit: float = math.inf
    ) -> list[NDArray[np.float32]]:
        """The least cost of the first 0, 1, ..., T tensors of `order` in the first 0..M slots, shapes (M + 1,).

        The first rows may be `known`; it ends early when even the first tensors cost more than `limit`.
        """
        rows = list(known) or [np.zeros(self.costs.shape[1] + 1, np.float32)]
        for t in order[len(rows) - 1 :]:
            if rows[-1][-1] > limit:
                break
            row = np.full_like(rows[0], np.inf)
            np.minimum.accumulate(self._with(t, rows[-1]), out=row[self.lengths[t] :])
            rows.append(row)
        return rows

    def _with(self, t: int, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """The least cost with tensor t behind, when it ends at slot lengths[t], ..., M."""
        end = len(row) - self.lengths[t]
        return row[:end] + self.costs[t, :end]

    def _places(self, order: list[int]) -> list[int]:
        """The slots that gave the last number of the recursion."""
        rows = self._recursion(order)
        end, places = self.costs.shape[1], [0] * len(order)
        for t, row in zip(reversed(order), reversed(rows), strict=False):
            end = int((row == row[end]).argmax()) - self.lengths[t]
            places[t] = end
        return places

    def _first_fit(self, order: list[int]) -> list[int]:
        """The order along the pool when each tensor in turn takes the first room it finds."""
        taken = np.zeros(self.costs.shape[1], bool)
        places = [0] * len(order)
        for t in order:
            length = self.lengths[t]
            before = np.concatenate([[0], taken.cumsum()])
            room = (before[length:] == before[: len(before) - length]) & np.isfinite(
                self.costs[t, : len(before) - length]
            )
            places[t] = int(room.argmax())
            taken[places[t] : places[t] + length] = True
        return sorted(order, key=lambda t: places[t])


def _does_not_fit(sizes: list[int], taken: Tensor, align: int) -> CapacityError:
    edges = torch.cat([torch.ones(1, dtype=torch.bool), taken, torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    runs = (edges.diff() - 1)[edges.diff() > 1]
    rounded = sum(-(-size // align) * align for size in sizes)
    return CapacityError(
        f"{len(sizes)} tensors of {sum(sizes):,} weights ({rounded:,} when aligned to {align}; the largest "
        f"{max(sizes):,}) do not fit as runs: of {taken.numel():,} positions {int(runs.sum()):,} are free, in "
        f"{len(runs)} runs, the longest of {int(runs.max()) if len(runs) else 0:,}; "
        "make the pool larger, or place by pages"
    )

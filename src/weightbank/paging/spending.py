"""Which extents of a pool stay private when there is room for some: the merge loss saved per byte."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int32
from torch import Tensor

from weightbank.budget import Allocation, Options
from weightbank.errors import CapacityError, DataError, LayoutError
from weightbank.paging.draft import importance_kept
from weightbank.paging.exclusive import last_free_run
from weightbank.paging.placement import Extent
from weightbank.paging.pool import ALIGN, Pool
from weightbank.types import Flat


@dataclass(frozen=True, eq=False)
class PrivateMenu:
    """For every shared extent: stay (option 0) or get positions of its own (option 1); see `private_options`."""

    options: Options
    extents: tuple[tuple[str, Extent], ...]

    def chosen(self, found: Allocation) -> list[tuple[str, Extent]]:
        """The extents that become private, each with its tenant's name."""
        return [place for place, way in zip(self.extents, found.choice.tolist(), strict=True) if way]


def private_options(
    pool: Pool, weights: Mapping[str, Tensor], *, curvatures: Mapping[str, Tensor] | None = None
) -> PrivateMenu:
    """What each shared extent of a pool costs its tenant, and the "bytes" that positions of its own would take.

    Shared, it costs its part of the merge loss, ½ Σ F (w - v)², w the tenant's own weights and v what the pool holds;
    private it costs nothing. Others on the same positions gain besides, which is left out: what `allocate` promises is
    an upper bound of what remains. Extents that nobody shares, and pages, are no places.

    Args:
        pool: with its tenants placed, and not tuned yet: tuned values stand for weights nobody had alone.
        weights: by tenant, w, shape (P,): the networks as they were added.
        curvatures: by tenant, F in loss per squared weight, so that the increase is in units of the loss; None takes
            the importances that placed them, of which every network has equally much.

    Raises `LayoutError` for tenants without weights or other sizes, `DataError` where nothing is shared.
    """
    generation = pool.generation
    occupants = _occupants(pool)
    places: list[tuple[str, Extent]] = []
    rows: list[tuple[float, float]] = []
    for name, tenant in generation.tenants.items():
        own = _own(pool, weights, name)
        score = importance_kept(tenant) if curvatures is None else curvatures[name]
        tenant.layout.check(score)
        lost = 0.5 * score.double().clamp(min=0) * (own - generation.theta(name)).double().square()
        for extent in tenant.placement.extents:
            if extent.exclusive or int(occupants[extent.position : extent.position + extent.length].max()) < 2:
                continue
            places.append((name, extent))
            part = float(lost[extent.start : extent.start + extent.length].sum())
            rows.append((part, float(pool.format.row_bytes(_padded(pool, extent.length)))))
    if not places:
        raise DataError(f"{pool!r}: no extent is shared, so there is nothing to decide")
    table = torch.tensor(rows, dtype=torch.float64)
    none = torch.zeros(len(rows), dtype=torch.float64)
    options = Options(torch.stack([table[:, 0], none], 1), {"bytes": torch.stack([none, table[:, 1]], 1)})
    return PrivateMenu(options, tuple(places))


def keep_private(pool: Pool, weights: Mapping[str, Tensor], extents: Sequence[tuple[str, Extent]]) -> None:
    """Move `extents` to free positions, the reserve included, with their tenants' own weights.

    Those who stay where they were move to the mean of who is left, by importance: every position holds the best common
    value again. Readers see it at once. Raises `CapacityError` when an extent finds no free run, `LayoutError` for
    extents or weights that are not the pool's; the pool is as before then.
    """
    with pool.edit() as draft:
        own = {name: _own(pool, weights, name) for name in draft.tenants}
        free = draft.occupants() == 0
        for name, extent in sorted(extents, key=lambda place: -place[1].length):
            old = draft.tenants[name].placement if name in draft.tenants else None
            if old is None or extent not in old.extents:
                raise LayoutError(f"'{name}' has no {extent} here; take the extents from private_options(pool, ...)")
            length = min(_padded(pool, extent.length), draft.size)
            position = last_free_run(free, length, draft.align)
            if position is None:
                raise CapacityError(
                    f"'{name}': no {length:,} free positions in one run, of {int(free.sum()):,} free ones; make the "
                    "pool larger, or keep fewer extents private"
                )
            free[position : position + length] = False
            moved = replace(extent, position=position, exclusive=True)
            runs = tuple(moved if each == extent else each for each in old.extents)
            draft.tenants[name] = replace(draft.tenants[name], placement=replace(old, extents=runs))
        precision, moment = draft.precision(), torch.zeros(draft.size)
        for name, tenant in draft.tenants.items():
            tenant.placement.add(moment, importance_kept(tenant) * own[name])
        draft.values = torch.where(precision > 0, moment / precision, 0.0)
        alone = draft.occupants() == 1  # there the mean is the weight, but for its rounding
        for name, tenant in draft.tenants.items():
            there = tenant.placement.gather(draft.values)
            tenant.placement.put(draft.values, torch.where(tenant.placement.gather(alone), own[name], there))


def _padded(pool: Pool, length: int) -> int:
    """Positions that a run of `length` takes: whole aligned units, so that no block is shared."""
    align = max(ALIGN, pool.format.columns)
    return -(-length // align) * align


def _occupants(pool: Pool) -> Int32[Tensor, " N"]:
    count = torch.zeros(pool.size, dtype=torch.int32)
    for tenant in pool.generation.tenants.values():
        tenant.placement.mark(count)
    return count


def _own(pool: Pool, weights: Mapping[str, Tensor], name: str) -> Flat:
    if name not in weights:
        raise LayoutError(f"no weights came for the tenant '{name}'; wanted those of {', '.join(pool)}")
    pool.generation.tenant(name).layout.check(weights[name])
    return weights[name].detach().to("cpu", pool.generation.theta(name).dtype)

"""Weights that are not shared: where there is room for them, and who gets it (two levels of memory, as in PerCom 2022).

Weight Separation (Lee and Nirjon, PerCom 2022, doi 10.1109/PerCom53586.2022.9762400) keeps essential weights apart.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from weightbank.errors import CapacityError, LayoutError
from weightbank.layout import Entry, Layout, Where
from weightbank.paging.draft import Draft, importance_kept
from weightbank.paging.placement import Extent, Placement
from weightbank.types import Flat


def vectors(name: str, parameter: nn.Parameter) -> bool:
    """A rule for `Pool.add(exclusive=...)`: biases and the parameters of norms, which have one dimension or none."""
    return parameter.ndim <= 1


def chosen_exclusive(model: nn.Module, layout: Layout, importance: Flat, rule: Where | float | None) -> frozenset[str]:
    """The names of the parameters that `Pool.add(exclusive=rule)` keeps apart.

    Of a fraction: going from the most to the least importance per weight, (P,), each tensor that still fits in that
    fraction of the weights; so small and important ones. Raises `LayoutError` for another rule.
    """
    if rule is None:
        return frozenset()
    if callable(rule):
        parameters = dict(model.named_parameters())
        return frozenset(name for name in layout.names if rule(name, parameters[name]))
    if isinstance(rule, bool) or not isinstance(rule, int | float) or not 0 <= rule <= 1:
        raise LayoutError(
            f"exclusive={rule!r}; wanted a rule such as weightbank.paging.vectors or weightbank.within('head'), or a "
            "fraction of the weights, from 0 to 1"
        )
    room, found = int(rule * layout.size), []
    for entry in sorted(layout.entries, key=lambda entry: -_per_weight(importance, entry)):
        if 0 < entry.size <= room:
            found.append(entry.name)
            room -= entry.size
    return frozenset(found)


def _per_weight(importance: Flat, entry: Entry) -> float:
    here = importance[entry.offset : entry.offset + entry.size]
    return float(here.mean(dtype=torch.float64)) if entry.size else 0.0


def last_free_run(free: Bool[Tensor, " N"], length: int, align: int) -> int | None:
    """The last multiple of `align` from which on `length` positions are free; None if there is none."""
    offsets = torch.arange(0, max(len(free) - length + 1, 0), align)
    taken = torch.cat([torch.zeros(1, dtype=torch.int64), (~free).cumsum(0)])
    fits = offsets[taken[offsets + length] == taken[offsets]]
    return int(fits[-1]) if len(fits) else None


def exclusive_extents(draft: Draft, name: str, entries: Sequence[Entry]) -> list[Extent]:
    """A place of its own for each tensor, the largest first.

    Raises `CapacityError` when there is no free run for one of them.
    """
    free = draft.occupants() == 0
    found = []
    for entry in sorted(entries, key=lambda entry: -entry.size):
        position = last_free_run(free, entry.size, draft.align)
        if position is None:
            raise CapacityError(
                f"'{name}': no {entry.size:,} free positions in one run for the exclusive '{entry.name}', of "
                f"{int(free.sum()):,} free ones; make the pool larger, with a reserve, or share this tensor"
            )
        free[position : position + entry.size] = False
        found.append(Extent(entry.offset, position, entry.size, exclusive=True))
    return sorted(found)


def set_apart(draft: Draft, name: str) -> int:
    """Move a tenant's most important shared extents or pages to free positions, where there is room; how many weights.

    The most important are those with the largest sum of importance per weight. Nobody's weights change.
    """
    tenant = draft.tenants[name]
    importance = importance_kept(tenant)
    occupants = draft.occupants()
    free = (occupants == 0) & ~_reserved_by_blocks(draft)
    old = tenant.placement
    moved = 0
    extents = list(old.extents)
    order = sorted(
        range(len(extents)),
        key=lambda k: -float(importance[extents[k].start : extents[k].start + extents[k].length].mean()),
    )
    for k in order:
        extent = extents[k]
        here = slice(extent.position, extent.position + extent.length)
        if extent.exclusive or int(occupants[here].max()) < 2:
            continue
        position = last_free_run(free, extent.length, draft.align)
        if position is not None:
            extents[k] = replace(extent, position=position, exclusive=True)
            free[position : position + extent.length] = False
            moved += extent.length
    pages, private = old.pages.long(), old.private.clone()
    if len(pages):
        moved += _pages_apart(old, importance, free, pages, private)
    if moved:
        draft.move(name, Placement(old.size, tuple(extents), old.page_size, pages, private))
    return moved


def _pages_apart(old: Placement, importance: Tensor, free: Tensor, pages: Tensor, private: Tensor) -> int:
    size, moved = old.page_size, 0
    count = len(free) // size
    empty = free[: count * size].view(count, size).all(1).nonzero()[:, 0].tolist()
    rest = torch.cat([importance[part] for part in old.paged])
    padded = torch.nn.functional.pad(rest, (0, len(pages) * size - len(rest)))
    for row in padded.view(-1, size).sum(1).argsort(descending=True).tolist():
        if not empty:
            break
        if not private[row]:
            pages[row], private[row] = empty.pop(), True
            moved += size
    return moved


def _reserved_by_blocks(draft: Draft) -> Bool[Tensor, " N"]:
    """Free positions beside used ones in one block of the format: filling them would change the block's rounding."""
    columns = max(draft.format.columns, 1)
    if columns == 1:
        return torch.zeros(draft.size, dtype=torch.bool)
    used = torch.nn.functional.pad(draft.occupants() > 0, (0, -draft.size % columns))
    return used.view(-1, columns).any(1).repeat_interleave(columns)[: draft.size]

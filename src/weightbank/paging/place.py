"""Find the positions of a newcomer: exclusive tensors first, then extents or pages where sharing costs least."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightbank.errors import CapacityError, FormatError
from weightbank.layout import Layout
from weightbank.paging.draft import Draft
from weightbank.paging.exclusive import exclusive_extents
from weightbank.paging.extents import place_extents
from weightbank.paging.pages import assign_pages
from weightbank.paging.placement import Extent, Placement
from weightbank.paging.published import NOISE, place_next
from weightbank.paging.statistics import Shared, paged
from weightbank.types import Flat

How: TypeAlias = Literal["extents", "pages", "published"]


def place(
    draft: Draft,
    name: str,
    layout: Layout,
    theta: Flat,
    importance: Flat,
    *,
    how: How = "extents",
    exclusive: frozenset[str] = frozenset(),
    page_size: int = 128,
    generator: torch.Generator,
) -> Placement:
    """Where the P weights of a network, with their importance, shape (P,), cost the tenants of `draft` least.

    "extents": every tensor one aligned run, so that it can be a view; order and offsets are searched. "pages": the
    tensors one after another cut into pages of `page_size`, each on the best physical page. "published": pages by the
    occupation-ordered greedy of the MobiSys 2020 system. `exclusive` names tensors that get free positions instead.

    Raises `CapacityError` when there is no room; nothing is changed then, nor otherwise.
    """
    entries = [entry for entry in layout.entries if entry.size]
    private = exclusive_extents(draft, name, [entry for entry in entries if entry.name in exclusive])
    common = [entry for entry in entries if entry.name not in exclusive]
    blocked = draft.blocked()
    for extent in private:
        blocked[extent.position : extent.position + extent.length] = True
    shared = draft.shared()
    if how == "extents":
        pieces = [slice(entry.offset, entry.offset + entry.size) for entry in common]
        weights, importances = [theta[piece] for piece in pieces], [importance[piece] for piece in pieces]
        offsets = _runs(weights, importances, shared, blocked, draft.align, generator)
        runs = [Extent(entry.offset, position, entry.size) for entry, position in zip(common, offsets, strict=True)]
        return Placement(layout.size, tuple(sorted([*private, *runs])))
    if how not in ("pages", "published") or page_size < 1:
        raise FormatError(f"placement={how!r} of page_size={page_size}; wanted extents, pages or published, at least 1")
    bare = Placement(layout.size, tuple(private), page_size)
    own = _paged_part(bare, theta), _paged_part(bare, importance)
    count = draft.size // page_size
    blocked_pages = blocked[: count * page_size].view(count, page_size).any(1)
    if how == "pages":
        table = assign_pages(*own, shared, page_size=page_size, blocked_pages=blocked_pages)
    else:
        table = _published(draft, *own, page_size, ~blocked_pages, generator)
    return Placement(layout.size, tuple(private), page_size, table, torch.zeros(len(table), dtype=torch.bool))


def _runs(
    weights: Sequence[Tensor],
    importances: Sequence[Tensor],
    shared: Shared,
    blocked: Bool[Tensor, " N"],
    align: int,
    generator: torch.Generator,
) -> list[int]:
    """Offsets that are multiples of `align`, or of less where the network fills the pool so that it fits only then."""
    for finer in (align, 4):
        if finer <= align:
            with suppress(CapacityError):
                return place_extents(weights, importances, shared, blocked=blocked, align=finer, generator=generator)
    return place_extents(weights, importances, shared, blocked=blocked, align=1, generator=generator)


def _paged_part(placement: Placement, vector: Flat) -> Float[Tensor, " L"]:
    return torch.cat([vector[part] for part in placement.paged] or [vector[:0]])


def _published(
    draft: Draft,
    theta: Tensor,
    importance: Tensor,
    page_size: int,
    free: Bool[Tensor, " Q"],
    generator: torch.Generator,
) -> Int64[Tensor, " n"]:
    """The next network of the published greedy, which meets noise on the pages instead of who stands there."""
    count = len(free)
    ((w, f),) = paged([theta], [importance], pages=int(free.sum()), page_size=page_size)
    occupants = draft.occupants()[: count * page_size].view(count, page_size).amax(1)[free].long()
    usable = free.nonzero()[:, 0]
    if not bool(occupants.any()):
        return usable[: len(w)]
    contents = torch.randn(count, page_size, generator=generator)[free] * NOISE
    precision = draft.precision()[: count * page_size].view(count, page_size)[free]
    return usable[place_next(w, f, contents, precision, occupants)[0]]

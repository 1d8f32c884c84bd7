"""Networks that run from pages or codes: each parameter is read from the pool when a layer asks for it, and not kept.

The memory of a pool in few bits would be worth little if every network that runs needed its float32 copy beside it.
Here one layer's weights are there at a time, for as long as the layer computes. Nothing is written, so any number of
threads can run the same module.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightbank.errors import LayoutError
from weightbank.layout import Entry
from weightbank.paging.owner import Owner
from weightbank.paging.placement import Placement
from weightbank.paging.tenant import Tenant, assemble


def streamed(tenant: Tenant, owner: Owner) -> nn.Module | None:
    """A module of the tenant's structure whose shared parameters are read from `owner` each time they are looked up.

    `parameters()`, `state_dict()` and attributes give their values, as fresh tensors. None for a model that holds
    parameters in other places than as parameters, apart from torch's recurrent layers.
    """
    assert tenant.skeleton is not None
    blank = {entry.name: _blank(entry) for entry in tenant.layout.entries}
    net = assemble(tenant.skeleton, {**blank, **tenant.rest})
    entries = {entry.name: entry for entry in tenant.layout.entries}
    ids = {id(parameter): entries[name] for name, parameter in net.named_parameters() if name in entries}
    for module in net.modules():
        own = {name: ids[id(parameter)] for name, parameter in module._parameters.items() if id(parameter) in ids}
        if own:
            module.__dict__["_parameters"] = Streamed(module._parameters, own, owner, tenant.placement)
        if isinstance(module, nn.RNNBase):
            _recurrent(module)
    if any(_holds(value, ids) for module in net.modules() for value in _attributes(module)):
        return None
    return net


class Streamed(dict[str, Any]):
    """The parameters of one module by name; those in `own` are read from the pool anew each time.

    Copies of it, and so of the module, are ordinary ones with weights of their own. What gets at a dict without asking
    it finds NaN.
    """

    def __init__(
        self, parameters: Mapping[str, Any], own: Mapping[str, Entry], owner: Owner, placement: Placement
    ) -> None:
        super().__init__(parameters)
        self.own, self.owner, self.placement = own, owner, placement

    def __getitem__(self, name: str) -> Any:
        entry = self.own.get(name)
        if entry is None:
            return super().__getitem__(name)
        return nn.Parameter(read(self.owner, self.placement, entry), requires_grad=False)

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.own:
            raise LayoutError(
                f"parameter '{name}' belongs to a pool and cannot be replaced: copy.deepcopy(net) is a network of its "
                "own, pool.materialise(name) an ordinary state_dict"
            )
        super().__setitem__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        plain = {}
        for name, value in super().items():
            entry = self.own.get(name)
            if entry is None:
                plain[name] = copy.deepcopy(value, memo)
            else:  # tied ones stay tied
                plain[name] = memo.setdefault(id(entry), nn.Parameter(self[name].clone(), requires_grad=False))
        return plain

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.items()),)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        return self[name] if dict.__contains__(self, name) else default

    def values(self) -> Any:
        """One at a time."""
        return (self[name] for name in self)

    def items(self) -> Any:
        """One at a time."""
        return ((name, self[name]) for name in self)


def read(owner: Owner, placement: Placement, entry: Entry) -> Tensor:
    """One tensor of a tenant, in its own shape and dtype; a view of the pool where it is one run of that dtype."""
    position = placement.offset(entry.offset, entry.size)
    if position is not None:
        values = _run(owner, position, position + entry.size)
    elif not placement.extents:
        values = _paged(owner, placement, entry.offset, entry.offset + entry.size)
    else:
        pieces = list(_pieces(owner, placement, entry.offset, entry.offset + entry.size))
        values = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return values.view(entry.shape).to(entry.dtype)


def _pieces(owner: Owner, placement: Placement, start: int, stop: int) -> Iterator[Tensor]:
    """θ[start:stop] from extents and pages, in order."""
    parts: list[tuple[int, int, int | None]] = [(e.start, e.start + e.length, e.position) for e in placement.extents]
    parts += [(part.start, part.stop, None) for part in placement.paged]
    at = {}
    paged = 0
    for part in placement.paged:
        at[part.start] = paged
        paged += part.stop - part.start
    for first, last, position in sorted(parts):
        low, high = max(first, start), min(last, stop)
        if low >= high:
            continue
        if position is not None:
            yield _run(owner, position + low - first, position + high - first)
        else:
            yield _paged(owner, placement, at[first] + low - first, at[first] + high - first)


def _run(owner: Owner, start: int, stop: int) -> Tensor:
    """Neighbouring positions."""
    plain = owner.plain
    if plain is not None:
        return plain[start:stop]
    columns = owner.format.columns
    first, last = start // columns * columns, min(-(-stop // columns) * columns, owner.size)
    offset, length = owner.format.span(first, last)
    out = torch.empty(1, last - first)
    owner.format.decode_rows(owner.raw[None, offset : offset + length], out)
    return out[0, start - first : stop - first]


def _paged(owner: Owner, placement: Placement, start: int, stop: int) -> Tensor:
    """The weights from `start` up to `stop` of those that stand in pages."""
    size = placement.page_size
    first, last, skip = start // size, -(-stop // size), start % size
    plain = owner.plain
    if plain is not None:
        return placement.read_pages(plain, first, last)[skip : skip + stop - start]
    pages = placement.pages[first:last].long()
    columns = owner.format.columns
    _, tile = owner.format.span(0, min(columns, owner.size))
    tiles = owner.raw.view(-1, tile)
    begin = pages * size // columns
    wanted = begin[:, None] + torch.arange((size + columns - 2) // columns + 1)  # as many as a page can touch
    raw = tiles.index_select(0, wanted.clamp_(max=len(tiles) - 1).view(-1)).view(len(pages), -1)
    values = torch.empty(len(pages), wanted.shape[1] * columns)
    owner.format.decode_rows(raw, values)
    within = (pages * size - begin * columns)[:, None] + torch.arange(size)
    return values.gather(1, within).view(-1)[skip : skip + stop - start]


def _blank(entry: Entry) -> Tensor:
    """Something of the right shape that takes no memory; never seen."""
    return torch.full((1,), torch.nan).to(entry.dtype).expand(entry.shape)


def _recurrent(module: nn.RNNBase) -> None:
    """Recurrent layers keep a list of their weights: make it look them up."""
    module.__dict__.pop("_flat_weights", None)
    kind = type(module)

    def flat_weights(self: Any) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]

    whatever = property(flat_weights, lambda self, value: None)  # torch sets it when weights seem to have changed
    module.__class__ = type(kind.__name__, (kind,), {"_flat_weights": whatever})


def _attributes(module: nn.Module) -> Iterator[Any]:
    """What a module holds beside parameters, buffers and modules."""
    return (value for name, value in module.__dict__.items() if name not in ("_parameters", "_buffers", "_modules"))


def _holds(value: Any, ids: Mapping[int, Entry], depth: int = 4) -> bool:
    """Whether one of the blank parameters is in there."""
    if isinstance(value, Tensor):
        return id(value) in ids
    if depth and isinstance(value, list | tuple | set | frozenset):
        return any(_holds(part, ids, depth - 1) for part in value)
    if depth and isinstance(value, dict):
        return any(_holds(part, ids, depth - 1) for part in value.values())
    return False

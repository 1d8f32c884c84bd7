"""Order weights or cells by what verifying them is worth, and pick the best: exact for any size, ties settled."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from weightbank.cim.cells import Cells
from weightbank.errors import DataError, LayoutError, NonFiniteError
from weightbank.layout import Layout
from weightbank.types import Flat

Order: TypeAlias = Int64[Tensor, " P"]
_PIECE = 2**20
_Rows: TypeAlias = Callable[[], Iterable[Flat]]


def rank(score: Flat, *, tie: Flat | None = None) -> Order:
    """The indices of the weights, best first, shape (P,): by `score`, then `tie` (larger first), then index.

    An infinite score comes first, as of 1 / variance where a weight never moved. For 129.6 million float32 weights it
    takes about 5 GB. Raises `NonFiniteError` for NaN or minus infinity, `LayoutError` for other shapes than (P,).

    >>> rank(torch.tensor([1.0, 3.0, 1.0, 2.0]), tie=torch.tensor([0.1, 0.0, 0.2, 0.0]))
    tensor([1, 3, 2, 0])
    """
    _check(score, tie)
    if tie is None:
        return (score + 0.0).argsort(descending=True, stable=True)
    if torch.float64 in (score.dtype, tie.dtype):
        order = (tie + 0.0).argsort(descending=True, stable=True)
        return order[(score + 0.0)[order].argsort(descending=True, stable=True)]
    combined = (~_keys(score)).long() << 32
    combined += (~_keys(tie)).long() + 2**31
    return combined.argsort(stable=True)


def select(
    ranked: Flat | Order,
    fraction: float | None = None,
    *,
    count: int | None = None,
    tie: Flat | None = None,
    among: Bool[Tensor, " P"] | None = None,
    layout: Layout | None = None,
    per_layer: bool = False,
) -> Bool[Tensor, " P"]:
    """Mark the best weights, shape (P,): a `fraction` of them, rounded to the nearest whole number, or `count`.

    Args:
        ranked: scores (floating, ranked with `tie`) or an order (int64, best first, from `rank`).
        fraction: between 0 and 1.
        count: instead of `fraction`.
        tie: settles equal scores, larger first; then the lower index wins.
        among: choose among these only, e.g. `device.on_device(layout)`; the fraction is of them.
        layout: needed for `per_layer`.
        per_layer: take the fraction of each parameter tensor rather than of all.

    Raises `DataError` for a fraction or count out of range, or an order that is no permutation; `NonFiniteError`;
    `LayoutError` for vectors of other sizes.

    >>> select(torch.tensor([0.1, 0.9, 0.5, 0.2]), 0.5)
    tensor([False,  True,  True, False])
    """
    size = len(ranked)
    for vector in (tie, among):
        if vector is not None and len(vector) != size:
            raise LayoutError(f"{len(vector)} numbers came with {size} ranked weights; wanted equally many")
    if per_layer:
        if layout is None or count is not None:
            raise DataError("per_layer takes a fraction of each tensor: pass fraction= and layout=")
        layout.check(ranked)
        return _per_layer(ranked, fraction, tie, among, layout)
    wanted = _count(fraction, count, size if among is None else int(among.count_nonzero()))
    if ranked.dtype != torch.int64:
        _check(ranked, tie)
        return top(lambda: [ranked], 1, wanted, tie=tie, among=among)[0]
    mask = torch.zeros(size, dtype=torch.bool)
    if size and (int(ranked.min()) < 0 or int(ranked.max()) >= size):
        raise DataError(f"an order of {size} weights goes from {int(ranked.min())} to {int(ranked.max())}")
    chosen = (ranked if among is None else ranked[among[ranked]])[:wanted]
    mask[chosen] = True
    if int(mask.count_nonzero()) != wanted:
        raise DataError(f"an order of {size} weights names some twice; pass the result of rank()")
    return mask


def cell_benefits(score: Flat, cells: Cells) -> Iterator[Flat]:
    """Expected decrease of the loss by verifying cell 1, 2, ... M of each weight, each (P,); -1 for digital weights.

    ½ score · scale² · 4^(-i m) · (sigma² - verified_sigma²), per pair twice that; `score` is a curvature, in loss per
    squared weight.
    """
    if not score.is_floating_point():
        raise LayoutError(f"scores of {score.dtype} came; wanted curvatures (floating) or an order (int64) of rank()")
    _check(score, None)
    if score.numel() and float(score.max()) == math.inf:
        raise NonFiniteError("a curvature is infinite; wanted loss per squared weight (rank() takes infinite scores)")
    cells.layout.check(score)
    device = cells.device
    worth = (0.5 * device.sides) * score.to("cpu").clamp(min=0) * cells.scale.square()
    for place, level in zip(device.places, cells.levels(), strict=True):
        gain = _square(device.spread(level)) - _square(device.spread(level, verified=True))
        yield torch.where(cells.on_device, worth * (place**2 * gain), -1.0)


def benefit(score: Flat, cells: Cells) -> Flat:
    """The same summed over a weight's cells, shape (P,): the loss that verifying it saves; -1 for digital weights."""
    total = torch.zeros_like(cells.theta)
    for row in cell_benefits(score, cells):
        total += row.clamp(min=0)
    return torch.where(cells.on_device, total, -1.0)


def select_cells(
    score: Flat, cells: Cells, fraction: float | None = None, *, count: int | None = None
) -> Bool[Tensor, "M P"]:
    """Mark the cells whose verification saves the most loss, shape (M, P): a fraction of all cells, or `count`.

    Equal ones by |w| / scale, larger first, then the more significant cell, then the lower index. Memory: six or so
    vectors of P numbers besides the result. Raises like `select`.
    """
    wanted = _count(fraction, count, cells.count * cells.device.cells)
    rows = partial(cell_benefits, score, cells)
    return top(rows, cells.device.cells, wanted, tie=cells.relative, among=cells.on_device)


def rank_cells(score: Flat, cells: Cells) -> Int64[Tensor, " N"]:
    """All cells on the device, best first, as indices into the flattened (M, P), in the order of `select_cells`.

    Holds all M P benefits at once.
    """
    values = torch.stack(list(cell_benefits(score, cells)))
    places = cells.on_device.repeat(len(values)).nonzero()[:, 0]
    tie = cells.relative.repeat(len(values))
    return places[rank(values.flatten()[places], tie=tie[places])]


def top(
    rows: _Rows, number: int, count: int, *, tie: Flat | None = None, among: Bool[Tensor, " P"] | None = None
) -> Bool[Tensor, "R P"]:
    """Mark the `count` largest numbers of all `number` rows together, without ever holding more than one row.

    Finds the exact threshold by histograms of 16 bits of the numbers at a time; `rows` is called once for each, and
    once more. Equal numbers at the threshold are taken by `tie`, larger first, then in order of row and index.
    """
    threshold, above = _threshold(rows, count, among)
    mask, ties = None, []
    for place, row in enumerate(rows()):
        mask = torch.zeros(number, len(row), dtype=torch.bool) if mask is None else mask
        for start, keys, inside in _pieces(row, among) if count else ():
            mask[place, start : start + len(keys)] = (keys > threshold) & inside
            ties.append(place * len(row) + start + ((keys == threshold) & inside).nonzero()[:, 0])
    assert mask is not None
    if count:
        places = torch.cat(ties)
        if tie is not None:
            places = places[(tie[places % len(tie)] + 0.0).argsort(descending=True, stable=True)]
        mask.view(-1)[places[: count - above]] = True
    return mask


def _threshold(rows: _Rows, count: int, among: Bool[Tensor, " P"] | None) -> tuple[int, int]:
    """The key of the `count`-th largest number, and how many are above it."""
    if count == 0:
        return 0, 0
    prefix: int | None = None
    above = shift = 0
    while True:
        histogram = torch.zeros(2**16, dtype=torch.int64)
        for row in rows():
            for _, keys, inside in _pieces(row, among):
                keys = keys if among is None else keys[inside]
                if prefix is None:
                    shift = 8 * keys.element_size() - 16
                    digits = (keys >> shift) + 2**15
                else:
                    digits = (keys[(keys >> (shift + 16)) == prefix] >> shift) & 0xFFFF
                histogram += torch.bincount(digits, minlength=2**16)
        from_top = histogram.flip(0).cumsum(0)
        position = int(torch.searchsorted(from_top, count - above))
        digit = 2**16 - 1 - position
        above += int(from_top[position] - histogram[digit])
        prefix = digit - 2**15 if prefix is None else (prefix << 16) | digit
        if shift == 0:
            return prefix, above
        shift -= 16


def _pieces(row: Flat, among: Bool[Tensor, " P"] | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """A row cut in pieces that fit into the cache: where each starts, its keys, and which of them count."""
    for start in range(0, len(row), _PIECE):
        keys = _keys(row[start : start + _PIECE])
        yield start, keys, torch.ones_like(keys, dtype=torch.bool) if among is None else among[start : start + _PIECE]


def _keys(x: Flat) -> Int[Tensor, " P"]:
    """Whole numbers of the same order as the floating ones, of the same width; -0 is 0."""
    if x.dtype == torch.float64:
        bits = (x + 0.0).view(torch.int64)
        return bits ^ ((bits >> 63) & (2**63 - 1))
    bits = (x.to(torch.float32) + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & (2**31 - 1))


def _square(spread: tuple[float | Flat, float | Flat]) -> float | Flat:
    """The mean squared error of a cell."""
    bias, std = spread
    return bias**2 + std**2


def _per_layer(
    ranked: Tensor, fraction: float | None, tie: Tensor | None, among: Tensor | None, layout: Layout
) -> Bool[Tensor, " P"]:
    if ranked.dtype == torch.int64:
        scores = torch.empty(len(ranked), dtype=torch.float64)
        scores[ranked] = -torch.arange(len(ranked), dtype=torch.float64)
        ranked, tie = scores, None
    parts = []
    for entry in layout.entries:
        place = slice(entry.offset, entry.offset + entry.size)
        here = [None if vector is None else vector[place] for vector in (tie, among)]
        parts.append(select(ranked[place], fraction, tie=here[0], among=here[1]))
    return torch.cat(parts)


def _count(fraction: float | None, count: int | None, size: int) -> int:
    if (fraction is None) == (count is None):
        raise DataError(f"fraction={fraction} and count={count} came; wanted one of them")
    if fraction is not None:
        if not 0 <= fraction <= 1:
            raise DataError(f"fraction={fraction}; wanted 0 to 1")
        return math.floor(fraction * size + 0.5)
    assert count is not None
    if not 0 <= count <= size:
        raise DataError(f"count={count} of {size} asked for; wanted 0 to {size}")
    return count


def _check(score: Tensor, tie: Tensor | None) -> None:
    if score.ndim != 1:
        raise LayoutError(f"scores of shape {tuple(score.shape)} came; wanted one vector over all weights, (P,)")
    for name, vector in (("scores", score), ("ties", tie)):
        if vector is not None and not bool((vector > -math.inf).all()):
            bad = int((~(vector > -math.inf)).sum())
            raise NonFiniteError(f"{bad} of {vector.numel()} {name} are NaN or -infinity; look at the curvature")
    if tie is not None and len(tie) != len(score):
        raise LayoutError(f"{len(tie)} ties came with {len(score)} scores; wanted equally many")

"""Write cycles and cells as one budget: which cells to verify, and how many bits each tensor is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Bool
from torch import Tensor

from weightbank.budget import Allocation, Options, displacement
from weightbank.cim.cells import Cells
from weightbank.cim.device import Device
from weightbank.cim.program import Chip
from weightbank.cim.rank import cell_benefits
from weightbank.distributions.patchwork import Patchwork
from weightbank.errors import DataError
from weightbank.layout import Layout
from weightbank.task import Task
from weightbank.types import Flat


def cell_options(score: Flat, cells: Cells) -> Options:
    """Verify a cell or not: M · P places, the most significant cell of every weight first; budget "cycles".

    The increase without verifying is what verifying would save, ½ h scale² 4^(-i m) (sigma² - verified_sigma²); a
    verified cell costs one cycle, a digital weight's none and saves nothing. `allocate` then picks what `select_cells`
    picks.
    """
    saved = torch.cat([gain.clamp(min=0) for gain in cell_benefits(score, cells)])
    places = cells.on_device.repeat(cells.device.cells)
    cost = torch.stack([torch.zeros_like(saved), places.to(saved)], 1)
    return Options(torch.stack([saved, torch.zeros_like(saved)], 1), {"cycles": cost})


@dataclass(frozen=True, eq=False)
class BitsAndCycles:
    """For every parameter tensor a choice of bits and of the share of its cells to verify; see `bits_and_cycles`."""

    options: Options
    layout: Layout
    ways: tuple[tuple[int, float], ...]
    chips: Mapping[tuple[int, float], Chip]

    def chosen(self, found: Allocation) -> dict[str, tuple[int, float]]:
        """Bits and verified share of each parameter, by name."""
        return {name: self.ways[int(way)] for name, way in zip(self.layout.names, found.choice, strict=True)}

    def law(self, found: Allocation) -> Patchwork:
        """The law of the weights so programmed."""
        return Patchwork(self.layout, {name: self.chips[way] for name, way in self.chosen(found).items()})


def bits_and_cycles(
    score: Flat,
    place: Task | Layout,
    device: Device,
    *,
    bits: Sequence[int],
    shares: Sequence[float],
    theta: Flat | None = None,
) -> BitsAndCycles:
    """What N bits and a verified share of the cells cost each parameter tensor: loss, "cells" and write "cycles".

    Args:
        score: a curvature h, shape (P,), loss per example and squared weight.
        place: the task, or a layout with `theta`.
        device: its `weight_bits` is replaced by each of `bits`, and weights are rounded to the levels of that many.
        bits: bits per weight to choose from, such as (3, 4, 6, 8); the cells' own bits stay.
        shares: shares of a tensor's cells to verify, the most useful first, such as (0, 0.01, 0.1, 1).
        theta: the weights, shape (P,); those of the task if None.

    The increase is ½ Σ h E[δ²] of the programmed tensor, rounding included; digital tensors cost nothing. Raises as
    `Device` and `select_cells`.
    """
    if not bits or not shares or not all(0 <= share <= 1 for share in shares):
        raise DataError(f"bits={tuple(bits)}, shares={tuple(shares)}; wanted at least one of each, shares in 0..1")
    ways = tuple(product(bits, shares))
    chips: dict[tuple[int, float], Chip] = {}
    rows: dict[str, list[Tensor]] = {"increase": [], "cells": [], "cycles": []}
    for count, share in ways:
        cells = Cells.of(place, replace(device, weight_bits=count, quantized=True), theta)
        verified = _best_of_each(score, cells, share)
        chip = chips[count, share] = Chip(cells, verified)
        lost = 0.5 * score.double().clamp(min=0) * displacement(chip, theta=cells.theta).double()
        used = cells.on_device.double() * (cells.device.cells * cells.device.sides)
        spent = (verified & cells.on_device).sum(0).double()
        for name, each in (("increase", lost), ("cells", used), ("cycles", spent)):
            rows[name].append(torch.stack([each[cells.layout.slice(part)].sum() for part in cells.layout.names]))
    table = {name: torch.stack(columns, 1) for name, columns in rows.items()}
    options = Options(table["increase"], {"cells": table["cells"], "cycles": table["cycles"]})
    return BitsAndCycles(options, cells.layout, ways, chips)


def _best_of_each(score: Flat, cells: Cells, share: float) -> Bool[Tensor, "M P"]:
    """The most useful share of each tensor's cells, shape (M, P)."""
    gains = torch.stack(list(cell_benefits(score, cells)))
    mask = torch.zeros(gains.shape, dtype=torch.bool)
    for entry in cells.layout.entries:
        span = slice(entry.offset, entry.offset + entry.size)
        part = gains[:, span].reshape(-1)
        wanted = round(share * int((part >= 0).sum()))
        best = part.argsort(descending=True, stable=True)[:wanted]
        chosen = torch.zeros(len(part), dtype=torch.bool)
        chosen[best] = True
        mask[:, span] = chosen.view(len(gains), -1)
    return mask

"""A pool from left to right: where each network's importance is, and how many networks share each part."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from weightbank.cli.console import say, show_json
from weightbank.errors import DataError
from weightbank.paging import Pool
from weightbank.paging.serve import Generation
from weightbank.report.saving import drawing, save_figure
from weightbank.report.themes import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, ROW = 4.4, 0.62
"""Inches: as wide as a phone, and the height of one network."""
SIZE = 9.0
"""Of letters, in points."""


def plot(file: Path, output: Path, bins: int, *, json: bool) -> None:
    """Draw a pool into `output`; with `json` also print the numbers."""
    pool = Pool.open(file)
    if not len(pool):
        raise DataError(f"{file}: nobody is in this pool yet; `weightbank pages add` puts a network in")
    found = profile(pool.generation, bins)
    drawing()
    save_figure(figure_of(found, pool.size), output)
    if json:
        show_json({"file": str(output), "positions": pool.size, "profile": found})
    else:
        say(f"{output}: {len(pool)} networks over {pool.size:,} positions")


def profile(generation: Generation, bins: int) -> dict[str, list[float]]:
    """Per part of the pool: how many networks use a position (mean), and each network's importance there.

    Importance is the part's sum over its positions divided by their number; a network's mean weight has 1. None stands
    for a network without importances: its use of the positions is given instead.
    """
    size = generation.owner.size
    edges = torch.linspace(0, size, min(bins, size) + 1).round().long()
    count = torch.zeros(size, dtype=torch.int32)
    found: dict[str, list[float]] = {}
    for name, tenant in generation.tenants.items():
        tenant.placement.mark(count)
        here = torch.zeros(size)
        importance = torch.ones(tenant.layout.size) if tenant.importance is None else tenant.importance.float()
        tenant.placement.add(here, importance)
        found[name] = _means(here, edges)
    return {"networks": _means(count.float(), edges), **found}


def _means(values: torch.Tensor, edges: torch.Tensor) -> list[float]:
    total = torch.cat([torch.zeros(1, dtype=torch.float64), values.double().cumsum(0)])[edges]
    return ((total[1:] - total[:-1]) / (edges[1:] - edges[:-1])).tolist()


def figure_of(found: Mapping[str, list[float]], size: int, theme: Theme = LIGHT) -> "Figure":
    """One strip for each network, then how many share."""
    from matplotlib.figure import Figure

    rows = [name for name in found if name != "networks"] + ["networks"]
    height = ROW * len(rows) + 0.5
    figure = Figure(figsize=(WIDTH, height), facecolor=theme.page)
    for number, name in enumerate(rows):
        bottom = 1 - (ROW * (number + 1) - 0.02) / height
        axes = figure.add_axes((0.04, bottom, 0.92, (ROW - 0.24) / height), facecolor="none")
        colour = theme.muted if name == "networks" else theme.lines[number % len(theme.lines)]
        label = "networks at a position" if name == "networks" else f"{name}: importance, log scale"
        _strip(axes, found[name], size, colour, log=name != "networks")
        figure.text(0.04, bottom + (ROW - 0.22) / height, label, fontsize=SIZE, color=theme.text)
        if name == "networks":
            axes.tick_params(length=0, labelsize=SIZE, labelcolor=theme.text, labelbottom=True)
            axes.set_xlabel("position in the pool", fontsize=SIZE, color=theme.text)
    return figure


def _strip(axes: "Axes", values: list[float], size: int, colour: str, *, log: bool) -> None:
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlim(0, size)
    axes.set_yticks([])
    axes.tick_params(labelbottom=False, length=0)
    edges = [size * number / len(values) for number in range(len(values) + 1)]
    if log:
        axes.set_yscale("symlog", linthresh=1e-2)
    axes.stairs(values, edges, fill=True, color=colour)
    axes.set_ylim(0, max(*values, 1e-2))

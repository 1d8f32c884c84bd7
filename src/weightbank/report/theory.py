"""Measured by predicted increase of the loss, one line per law: where the quadratic theory holds, and where it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightbank.errors import DataError
from weightbank.evaluation.estimate import Estimate
from weightbank.report.figures import BOTTOM, HEIGHT, RIGHT, SIZE, SMALL, TOP, WIDTH, name_left_of, spread
from weightbank.report.saving import drawing
from weightbank.report.themes import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACTOR = 1.5
"""Within this factor, either way, the theory is said to hold."""

LOWEST, HIGHEST = 0.2, 5.0
"""Of the ratios drawn; those beyond stand at the edge."""


@dataclass(frozen=True)
class Compared:
    """One perturbation: what ½ Σ h E[δ²] predicts of the mean loss, and what was measured.

    law: such as "rounding"; a line of the figure.
    setting: such as "4 bits"; a point of it.
    predicted: expected increase, in units of the loss, above 0.
    measured: `weightbank.budget.measured_increase`.
    """

    law: str
    setting: str
    predicted: float
    measured: Estimate

    @property
    def ratio(self) -> float:
        """Measured / predicted."""
        return self.measured.mean / self.predicted

    @property
    def within(self) -> bool:
        """Whether the ratio is within a factor of 1.5."""
        return 1 / FACTOR <= self.ratio <= FACTOR


def theory_figure(points: Sequence[Compared], *, title: str | None = None, dark: bool = False) -> "Figure":
    """The ratio measured / predicted against the predicted increase, both logarithmic, one line per law.

    The band is where the ratio is within a factor of 1.5; ratios beyond 0.2 and 5 stand at the edge. Raises `DataError`
    without points, or for a prediction that is not positive.
    """
    drawing()
    from matplotlib.figure import Figure

    bad = [point for point in points if not 0 < point.predicted < math.inf]
    if not points or bad:
        raise DataError(f"{len(points)} points, {len(bad)} of them without a positive prediction; nothing to draw")
    theme = DARK if dark else LIGHT
    names = list(dict.fromkeys(point.law for point in points))
    lines = [sorted((p for p in points if p.law == name), key=lambda p: p.predicted) for name in names]
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=theme.page)
    left = (max(len(name) for name in names) * 0.56 * SIZE + 18) / (72 * WIDTH)
    axes = figure.add_axes((left, BOTTOM, RIGHT - left, TOP - BOTTOM), facecolor="none")
    _scale(axes, points)
    axes.axhspan(1 / FACTOR, FACTOR, color=theme.grid, linewidth=0, zorder=0)
    axes.axhline(1, color=theme.muted, linewidth=1, zorder=1)
    for number, line in enumerate(lines):
        colour = theme.lines[number % len(theme.lines)]
        x, y = [point.predicted for point in line], [_shown(point.ratio) for point in line]
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3)
    _furnish(figure, axes, theme, title)
    _names(axes, theme, names, lines)
    return figure


def _scale(axes: "Axes", points: Sequence[Compared]) -> None:
    x = [point.predicted for point in points]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(x) / 1.3, max(x) * 1.3)
    axes.set_ylim(LOWEST / 1.1, HIGHEST * 1.1)
    low, high = math.ceil(math.log10(min(x))), math.floor(math.log10(max(x)))
    axes.minorticks_off()
    every = max(1, math.ceil((high - low + 1) / 4))
    powers = range(low, high + 1, every)
    axes.set_xticks([10.0**power for power in powers], [f"{10.0**power:g}" for power in powers])
    ticks = [0.2, 0.5, 1 / FACTOR, 1, FACTOR, 2, 5]
    axes.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axes.minorticks_off()


def _furnish(figure: "Figure", axes: "Axes", theme: Theme, title: str | None) -> None:
    axes.yaxis.tick_right()
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=theme.text, pad=4)
    for side in axes.spines.values():
        side.set_visible(False)
    edge = 8 / (72 * WIDTH)
    figure.text(1 - edge, 0.02, "predicted increase of the loss", ha="right", fontsize=SIZE, color=theme.text)
    figure.text(1 - edge, TOP + 0.03, "measured / predicted", ha="right", fontsize=SIZE, color=theme.muted)
    if title:
        figure.text(edge, TOP + 0.03, title, ha="left", fontsize=SIZE + 1, color=theme.text, fontweight="bold")


def _names(axes: "Axes", theme: Theme, names: list[str], lines: list[list[Compared]]) -> None:
    """Each line's name left of its first point, moved up or down where names would overlap."""
    height = HEIGHT * 72 * (TOP - BOTTOM)
    span = math.log(HIGHEST / LOWEST * 1.21)
    wanted = [math.log(_shown(line[0].ratio) * 1.1 / LOWEST) / span * height for line in lines]
    order = sorted(range(len(names)), key=lambda number: wanted[number])
    for number, at in zip(order, spread([wanted[n] for n in order], 1.25 * SIZE, 0.0, height), strict=True):
        first = lines[number][0]
        point = (first.predicted, _shown(first.ratio))
        name_left_of(axes, point, at, names[number], theme.lines[number % len(theme.lines)])


def _shown(ratio: float) -> float:
    return min(max(ratio, LOWEST), HIGHEST)

"""Accuracy against write cycles, one line per method with its band, named where the lines are furthest apart."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from weightbank.cim.sweep import Row, Sweep
from weightbank.errors import DataError
from weightbank.report.saving import drawing
from weightbank.report.themes import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 4.2
"""Inches: at its natural size as wide as a phone, so that letters stay letters there."""

SIZE, SMALL = 9.5, 8.5
"""Of letters, in points."""

TOP, BOTTOM, RIGHT = 0.9, 0.12, 0.87
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)

_AXES = {
    "write_cycles": "extra write cycles, % of verifying everything",
    "total_write_cycles": "all write cycles, % of verifying everything",
    "reads": "verifying reads per cell",
}


def accuracy_figure(
    sweep: Sweep,
    *,
    axis: Literal["write_cycles", "total_write_cycles", "reads"] = "write_cycles",
    title: str | None = None,
    dark: bool = False,
) -> "Figure":
    """The mean accuracy over chips of each method with its 95 % band, against what programming takes.

    The horizontal axis is logarithmic where it spans more than a factor of 30: points without any verifying then are
    one dotted line. The vertical one is logarithmic in the error where errors span more than a factor of four; the
    exact weights' accuracy is a dashed line. For negative losses it is linear. Raises `DataError` for an empty sweep.
    """
    drawing()
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    rows = {name: sweep.of(name) for name in sweep.methods}
    shown = {name: [row for row in some if getattr(row, axis) > 0] for name, some in rows.items()}
    shown = {name: some for name, some in shown.items() if some}
    if not shown:
        raise DataError(f"a sweep of {len(sweep.rows)} rows, none with {axis} above 0; there is nothing to draw")
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=theme.page)
    left = (max(len(name) for name in shown) * 0.56 * SIZE + 18) / (72 * WIDTH)
    axes = figure.add_axes((left, BOTTOM, RIGHT - left, TOP - BOTTOM), facecolor="none")
    _scale(axes, sweep, shown, axis)
    what = "accuracy %" if _percent(sweep) else "minus the loss"
    _furnish(figure, axes, theme, _AXES[axis], what, title)
    _lines(axes, shown, axis, theme)
    _references(axes, sweep, rows, axis, theme)
    _names(axes, {name: some[0] for name, some in shown.items()}, axis, theme)
    return figure


def _lines(axes: "Axes", shown: dict[str, list[Row]], axis: str, theme: Theme) -> None:
    for number, (_, some) in enumerate(shown.items()):
        colour = theme.lines[number % len(theme.lines)]
        style = "-" if number < len(theme.lines) else "--"
        x = [_across(row, axis) for row in some]
        axes.fill_between(x, [r.low for r in some], [r.high for r in some], color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, [r.accuracy.mean for r in some], style, color=colour, linewidth=1.6, marker="o", markersize=3)


def _scale(axes: "Axes", sweep: Sweep, shown: dict[str, list[Row]], axis: str) -> None:
    some = [row for rows in shown.values() for row in rows]
    x = [_across(row, axis) for row in some]
    if max(x) > 30 * min(x):
        axes.set_xscale("log")
        axes.set_xlim(min(x) / 1.15, max(x) * 1.3)
        ticks = [10.0**power for power in range(math.ceil(math.log10(min(x))), math.floor(math.log10(max(x))) + 1)]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    errors = [1 - value for value in _values(sweep) if value < 1]
    if not _percent(sweep) or not errors or max(errors) < 4 * min(errors):
        factor = 100 if _percent(sweep) else 1
        axes.margins(y=0.08)
        axes.yaxis.set_major_formatter(lambda y, _: f"{factor * y:g}")
        return
    least = min(errors) / 1.4
    axes.set_yscale(
        "function",
        functions=(lambda y: -np.log10(np.maximum(1 - y, least / 4)), lambda z: 1 - 10.0 ** -np.asarray(z)),
    )
    worst = max(1.15 * max(errors), *(1.03 * (1 - row.low) for row in some))
    bottom, top = 1 - min(0.999, worst), 1 - least
    axes.set_ylim(bottom, top)
    ticks = [tick for tick in TICKS if bottom <= tick <= top]
    axes.set_yticks(ticks, [f"{100 * tick:g}" for tick in ticks])
    axes.minorticks_off()


def _furnish(figure: "Figure", axes: "Axes", theme: Theme, across: str, what: str, title: str | None) -> None:
    axes.yaxis.tick_right()
    axes.tick_params(length=0, labelsize=SIZE, labelcolor=theme.text, pad=4)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    edge = 8 / (72 * WIDTH)
    figure.text(1 - edge, 0.02, across, ha="right", fontsize=SIZE, color=theme.text)
    figure.text(1 - edge, TOP + 0.03, what, ha="right", fontsize=SIZE, color=theme.muted)
    if title:
        figure.text(edge, TOP + 0.03, title, ha="left", fontsize=SIZE + 1, color=theme.text, fontweight="bold")


def _references(axes: "Axes", sweep: Sweep, rows: dict[str, tuple[Row, ...]], axis: str, theme: Theme) -> None:
    """Dashed the exact weights, dotted the chips of which nothing is verified."""
    factor, digits = (100, ".1f") if _percent(sweep) else (1, ".3g")
    lines = [(sweep.clean, (0, (5, 3)), f"exact weights {factor * sweep.clean:{digits}}", 3)]
    blank = [row for some in rows.values() for row in some if getattr(row, axis) == 0 and row.fraction == 0]
    if blank and axes.get_xscale() == "log":
        mean = blank[0].accuracy.mean
        lines.append((mean, (0, (1, 2)), f"nothing verified {factor * mean:{digits}}", -3))
    for value, dashes, text, up in lines:
        axes.axhline(value, color=theme.muted, linewidth=1, linestyle=dashes, zorder=1)
        axes.annotate(
            text,
            (int(up < 0), value),  # over the left end and under the right one, where no line of a method is
            (0, up),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left" if up > 0 else "right",
            va="bottom" if up > 0 else "top",
            fontsize=SMALL,
            color=theme.muted,
        )


def _names(axes: "Axes", first: dict[str, Row], axis: str, theme: Theme) -> None:
    """Each line's name left of its first point, moved up or down where names would overlap."""
    height = HEIGHT * 72 * (TOP - BOTTOM)
    places = []
    for number, row in enumerate(first.values()):
        x = _across(row, axis)
        y = axes.transAxes.inverted().transform(axes.transData.transform((x, row.accuracy.mean)))[1]
        places.append((float(y) * height, number, x, row.accuracy.mean))
    order = sorted(places)
    apart = spread([place[0] for place in order], 1.25 * SIZE, 0.0, height)
    names = list(first)
    for (_, number, x, y), at in zip(order, apart, strict=True):
        name_left_of(axes, (x, y), at, names[number], theme.lines[number % len(theme.lines)])


def name_left_of(axes: "Axes", point: tuple[float, float], at: float, name: str, colour: str) -> None:
    """A line's name left of its first point, its middle `at` so many typographic points up the axes, with a leader."""
    axes.annotate(
        name,
        point,
        (-12, at),
        xycoords="data",
        textcoords=("axes points", "axes points"),
        ha="right",
        va="center",
        fontsize=SIZE,
        color=colour,
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (1, 0.5), "shrinkA": 0},
        annotation_clip=False,
    )


def _across(row: Row, axis: str) -> float:
    """Where a row stands on the horizontal axis: in percent, or reads per cell."""
    value: float = getattr(row, axis)
    return value if axis == "reads" else 100 * value


def _values(sweep: Sweep) -> list[float]:
    return [sweep.clean, *(row.accuracy.mean for row in sweep.rows)]


def _percent(sweep: Sweep) -> bool:
    """Whether the scores are accuracies; those of floating targets are negative losses."""
    return min(_values(sweep)) >= 0 and max(_values(sweep)) <= 1


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart between `low` and `high`, moved as little as can be (least squares) from `wanted`.

    Those wanted come in rising order. Less their number times `gap`, the places sought need only not fall: isotonic
    regression, by pooling neighbours that would. What does not fit reaches beyond `high`.

    >>> spread([1.0, 1.2, 5.0], 1.0, 0.0, 10.0)
    [0.6, 1.6, 5.0]
    """
    blocks: list[tuple[float, int]] = []  # sum and count of what is pooled
    for number, place in enumerate(wanted):
        total, count = place - number * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            before, some = blocks.pop()
            total, count = total + before, count + some
        blocks.append((total, count))
    pooled = [total / count for total, count in blocks for _ in range(count)]
    most = max(low, high - (len(wanted) - 1) * gap)
    return [min(max(place, low), most) + number * gap for number, place in enumerate(pooled)]

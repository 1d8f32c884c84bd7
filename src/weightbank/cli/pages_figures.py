"""Figures of the experiments on pools: lines named at their ends, dots by name, or a heat map of pairs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from weightbank.errors import DataError
from weightbank.paging.experiments import Row
from weightbank.report.figures import spread
from weightbank.report.themes import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 4.2
"""Inches: as wide as a phone at its natural size."""
SIZE = 9.0
"""Of letters, in points."""
MOST_TICKS = 6
"""Up to so many different places on the horizontal axis each of them is named."""


@dataclass(frozen=True)
class Drawing:
    """Which columns of an experiment are drawn, and how.

    Lines go along `x`, one for each value of `by` and each column of `values`; dots stand in rows named by `by`, one
    colour for each column of `values` (or each value of `x`); a heat map colours the pairs `x`, `by`.
    """

    kind: Literal["lines", "dots", "heat"]
    x: str
    by: tuple[str, ...]
    values: tuple[str, ...]
    label: str
    log_x: bool = False
    log_value: bool = False
    factor: float = 1.0


DRAWINGS = {
    "networks": Drawing("lines", "networks", ("network",), ("tuned",), "test accuracy %", factor=100),
    "page-size": Drawing("lines", "page_size", ("network",), ("tuned",), "test accuracy %", log_x=True, factor=100),
    "penalty": Drawing("lines", "penalty", ("network",), ("tuned",), "test accuracy %", log_x=True, factor=100),
    "order": Drawing("dots", "method", ("network",), ("tuned",), "test accuracy %", factor=100),
    "formats": Drawing("dots", "format", ("network",), ("by_example",), "test accuracy %", factor=100),
    "convergence": Drawing("lines", "step", ("network",), ("score",), "score on held-back data"),
    "matching": Drawing("lines", "page_size", ("policy",), ("merge_loss",), "merge loss", log_x=True, log_value=True),
    "switching": Drawing("dots", "", ("way", "network"), ("first_us", "median_us"), "microseconds", log_value=True),
    "memory": Drawing(
        "lines",
        "networks",
        (),
        ("pool_computed", "pool_held", "apart_computed", "apart_held"),
        "kB",
        factor=1e-3,
    ),
    "sharing": Drawing("heat", "first", ("second",), ("cost",), "cost of sharing"),
    "importance": Drawing("lines", "weights", ("network",), ("importance",), "share of the importance", log_x=True),
}
"""Experiment -> what is drawn of it."""


def figure_of(experiment: str, rows: Sequence[Row], *, dark: bool = False) -> "Figure":
    """Draw the rows of an experiment; `DataError` where no row has a number to draw."""
    from matplotlib.figure import Figure

    drawing, theme = DRAWINGS[experiment], DARK if dark else LIGHT
    series = _series(drawing, rows)
    if not series:
        raise DataError(f"{len(rows)} rows of '{experiment}' have no number to draw; its networks have no data here")
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=theme.page)
    axes = figure.add_axes((0.14, 0.13, 0.62, 0.77), facecolor="none")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=SIZE, labelcolor=theme.text)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    figure.text(0.02, 0.94, drawing.label, fontsize=SIZE, color=theme.muted)
    {"lines": _lines, "dots": _dots, "heat": _heat}[drawing.kind](axes, drawing, series, theme)
    return figure


Series = dict[str, list[tuple[str | float, float]]]


def _series(drawing: Drawing, rows: Iterable[Row]) -> Series:
    """Name of a line or colour -> its points (x or name, number); rows without a number are left out."""
    found: Series = {}
    for row in rows:
        name = " ".join(str(row[column]) for column in drawing.by)
        for column in drawing.values:
            value = row[column]
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if drawing.kind == "dots":
                line, x = (str(row[drawing.x]) if drawing.x else column.replace("_us", "")), name
            elif drawing.kind == "heat":
                line, x = str(row[drawing.x]), name
            else:
                line, x = name or column.replace("_", " "), row[drawing.x]  # type: ignore[assignment]
            found.setdefault(line, []).append((x, drawing.factor * value))
    return found


def _lines(axes: "Axes", drawing: Drawing, series: Series, theme: Theme) -> None:
    ends: list[tuple[float, float, str, str]] = []
    log = drawing.log_x and all(float(x) > 0 for points in series.values() for x, _ in points)
    for number, (name, points) in enumerate(series.items()):
        colour = theme.lines[number % len(theme.lines)]
        style = "-" if number < len(theme.lines) else "--"
        x, y = [float(x) for x, _ in points], [value for _, value in points]
        axes.plot(x, y, style, color=colour, linewidth=1.6, marker="o", markersize=3)
        ends.append((y[-1], x[-1], name, colour))
    if drawing.log_x:
        axes.set_xscale("log" if log else "symlog")
    if drawing.log_value:
        axes.set_yscale("log")
    places = sorted({float(x) for points in series.values() for x, _ in points})
    if len(places) <= MOST_TICKS:
        axes.set_xticks(places, [f"{place:,g}" for place in places])
    axes.minorticks_off()
    right = (max(len(name) for name in series) * 0.52 * SIZE + 26) / (72 * WIDTH)
    axes.set_position((0.13, 0.13, 0.86 - right, 0.77))
    axes.set_xlabel(drawing.x.replace("_", " "), fontsize=SIZE, color=theme.text)
    _end_names(axes, ends)


def _end_names(axes: "Axes", ends: list[tuple[float, float, str, str]]) -> None:
    """Each line's name right of its last point, moved where names would overlap."""
    ends = sorted(ends)
    axes.autoscale_view()
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((x, y))[1]) * height for y, x, _, _ in ends]
    for (y, x, name, colour), place in zip(ends, spread(wanted, 1.2 * SIZE, 0.0, height), strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.04, place / height),
            textcoords="axes fraction",
            va="center",
            fontsize=SIZE,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _dots(axes: "Axes", drawing: Drawing, series: Series, theme: Theme) -> None:
    names = list(dict.fromkeys(str(x) for points in series.values() for x, _ in points))
    for number, (line, points) in enumerate(series.items()):
        colour = theme.lines[number % len(theme.lines)]
        axes.plot([value for _, value in points], [names.index(str(x)) for x, _ in points], "o", color=colour)
        axes.figure.text(0.98, 0.86 - 0.05 * number, line, ha="right", fontsize=SIZE, color=colour)
    if drawing.log_value:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    left = (max(len(name) for name in names) * 0.55 * SIZE + 10) / (72 * WIDTH)
    axes.set_position((left, 0.08, 0.82 - left, 0.82))


def _heat(axes: "Axes", drawing: Drawing, series: Series, theme: Theme) -> None:
    names = list(dict.fromkeys([*series, *(str(x) for points in series.values() for x, _ in points)]))
    grid = [[math.nan] * len(names) for _ in names]
    for first, points in series.items():
        for second, value in points:
            one, other = names.index(first), names.index(str(second))
            grid[one][other] = grid[other][one] = value
    largest = max(value for points in series.values() for _, value in points)
    axes.grid(False)
    axes.imshow(grid, cmap="viridis")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            if math.isfinite(value):
                colour = "#1f2328" if value > 0.6 * largest else "#ffffff"
                axes.text(j, i, _short(value), ha="center", va="center", fontsize=SIZE - 2, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    left = (max(len(name) for name in names) * 0.55 * SIZE + 12) / (72 * WIDTH)
    axes.set_position((left, left, 0.97 - left, 0.92 - left))


def _short(value: float) -> str:
    """Two digits that matter, without exponent as long as that is not longer."""
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"

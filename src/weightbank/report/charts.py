"""Two plain charts, as wide as a phone: bars with their numbers written beside them, and lines named at their ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightbank.errors import DataError
from weightbank.report.figures import SIZE, WIDTH, spread
from weightbank.report.saving import drawing
from weightbank.report.themes import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR = 0.27
"""Inches a bar takes."""

LETTER = 0.56
"""Width of a letter over its height, about."""

MOST_BARS, MOST_LINES, MOST_POINTS, LONGEST = 40, 10, 5000, 28


@dataclass(frozen=True)
class Bar:
    """One value with the standard error it has, if any; `text` is what is written beside it."""

    name: str
    value: float
    text: str
    stderr: float = 0.0


def bars(
    found: Sequence[Bar], label: str, *, ticks: Callable[[float], str] = "{:,g}".format, dark: bool = False
) -> "Figure":
    """Horizontal bars from the first, on top, to the last; from zero, unless all of them are far from it.

    Where all values are more than half of the largest away from zero, bars would look alike: then dots are drawn.
    At most 40 are drawn; `DataError` for none. `ticks` writes the numbers of the axis.
    """
    if not found:
        raise DataError("no values came; there is nothing to draw")
    drawing()
    from matplotlib.figure import Figure

    theme, some = DARK if dark else LIGHT, list(found[:MOST_BARS])
    left = (max(len(short(bar.name)) for bar in some) * LETTER * SIZE + 14) / (72 * WIDTH)
    right = 1 - (max(len(bar.text) for bar in some) * LETTER * SIZE + 14) / (72 * WIDTH)
    height = BAR * len(some) + 0.55
    figure = Figure(figsize=(WIDTH, height), facecolor=theme.page)
    axes = figure.add_axes((left, 0.45 / height, max(right - left, 0.2), 1 - 0.5 / height), facecolor="none")
    places, values = range(len(some)), [bar.value for bar in some]
    low, high = min(values), max(values)
    if low > 0.5 * high > 0:
        axes.plot(values, places, "o", color=theme.lines[0], markersize=5)
        reach = max(1.3 * max(bar.stderr for bar in some), 0.08 * (high - low)) or 0.1 * high
        axes.set_xlim(low - reach, high + reach)
    else:
        axes.barh(places, values, height=0.62, color=theme.lines[0])
        axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.errorbar(values, places, xerr=[bar.stderr for bar in some], fmt="none", ecolor=theme.muted, elinewidth=1.2)
    axes.set_yticks(places, [plain(short(bar.name)) for bar in some])
    axes.set_ylim(len(some) - 0.4, -0.6)
    for place, bar in enumerate(some):
        axes.annotate(plain(bar.text), (1, place), (6, 0), ("axes fraction", "data"), "offset points", va="center")
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: ticks(x))
    _furnish(figure, axes, theme, label, height)
    axes.grid(visible=False, axis="y")
    return figure


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    across: str,
    what: str,
    *,
    level: tuple[float, str] | None = None,
    dark: bool = False,
) -> "Figure":
    """One line for each of at most ten series over `x`, named at its right end; `level` is a dashed line with a text.

    Raises `DataError` for no points, for more than 5,000, and for series of other lengths.
    """
    if not x or not series or any(len(values) != len(x) for values in series.values()) or len(x) > MOST_POINTS:
        lengths = sorted({len(values) for values in series.values()})
        raise DataError(f"{len(x)} places and series of {lengths}; wanted equally many, 1 to {MOST_POINTS:,}")
    drawing()
    from matplotlib.figure import Figure

    theme, height = DARK if dark else LIGHT, 3.0
    chosen = dict(list(series.items())[:MOST_LINES])
    room = max(len(short(name)) for name in chosen) * LETTER * SIZE + 16 if len(chosen) > 1 else 12
    figure = Figure(figsize=(WIDTH, height), facecolor=theme.page)
    axes = figure.add_axes((0.13, 0.17, 0.87 - room / (72 * WIDTH), 0.71), facecolor="none")
    for (_, values), colour in zip(chosen.items(), theme.lines, strict=False):
        axes.plot(x, values, color=colour, linewidth=1.6, marker="o" if len(x) <= 40 else "", markersize=3)
    if level is not None:
        axes.axhline(level[0], color=theme.muted, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(level[1], (0, level[0]), (2, 3), ("axes fraction", "data"), "offset points", color=theme.muted)
    axes.margins(y=0.12)
    figure.text(8 / (72 * WIDTH), 0.93, plain(what), fontsize=SIZE, color=theme.muted)
    _furnish(figure, axes, theme, across, height)
    if len(chosen) > 1:
        _name_ends(axes, chosen, theme, 72 * height * 0.71)
    return figure


def plain(text: str) -> str:
    """Text in which no dollar starts a formula."""
    return text.replace("$", r"\$")


def short(text: str) -> str:
    """A name of at most 28 letters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _furnish(figure: "Figure", axes: "Axes", theme: Theme, label: str, height: float) -> None:
    axes.tick_params(length=0, labelsize=SIZE, labelcolor=theme.text, pad=4)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for text in axes.texts:
        text.set_fontsize(SIZE)
        if text.get_color() == "black":
            text.set_color(theme.text)
    figure.text(1 - 8 / (72 * WIDTH), 0.08 / height, plain(label), ha="right", fontsize=SIZE, color=theme.text)


def _name_ends(axes: "Axes", chosen: Mapping[str, Sequence[float]], theme: Theme, height: float) -> None:
    """Each line's name right of its last point, moved apart where names would overlap."""
    low, high = axes.get_ylim()
    ends = sorted((height * (values[-1] - low) / (high - low), place) for place, values in enumerate(chosen.values()))
    apart = spread([end for end, _ in ends], 1.25 * SIZE, 0.0, height)
    names = list(chosen)
    for (_, place), at in zip(ends, apart, strict=True):
        axes.annotate(
            plain(short(names[place])),
            (1, at / height),
            (4, 0),
            "axes fraction",
            "offset points",
            va="center",
            fontsize=SIZE,
            color=theme.lines[place],
            annotation_clip=False,
        )

"""Which figure helps with which result, and what to see in it; drawn from numbers that are checked first."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightbank.cim.plan import estimate_of
from weightbank.cim.sweep import Row, Sweep
from weightbank.errors import DataError
from weightbank.report.charts import Bar, bars, lines, plain, short
from weightbank.report.figures import accuracy_figure
from weightbank.report.results import Result
from weightbank.report.saving import save_figure
from weightbank.report.tables import clipped, text_of
from weightbank.sizes import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 2000
"""Of a sweep, to be drawn."""

Drawn = tuple["Figure", str]
Draw = Callable[[Mapping[str, Any]], Drawn | None]
"""A document to its figure and a caption that says what to see; None where there is nothing to see."""


@dataclass(frozen=True)
class Picture:
    """A drawing as SVG and its caption."""

    svg: str
    caption: str


def picture_of(result: Result, draws: Mapping[str, Draw] | None = None) -> Picture | None:
    """The figure of a result; None for kinds without one. `draws` adds kinds, by command.

    Raises `DataError` where matplotlib is missing, or the numbers are not those of such a result.
    """
    draw = {**DRAWS, **(draws or {})}.get(result.kind.command)
    if draw is None:
        return None
    try:
        drawn = draw(result.document)
        return None if drawn is None else Picture(svg_of(drawn[0]), drawn[1])
    except DataError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{result.name}: cannot be drawn, its numbers are not as expected: {clipped(str(error))}"
        ) from error


def svg_of(figure: "Figure") -> str:
    """A figure as an `<svg>` element that follows its page from light to dark."""
    with tempfile.TemporaryDirectory(prefix="weightbank-") as place:
        path = Path(place) / "figure.svg"
        save_figure(figure, path)
        text = path.read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def sweep_of(document: Mapping[str, Any]) -> Sweep:
    """The sweep that `cim sweep --json` printed, for drawing: names shortened, numbers checked."""
    if len(document["rows"]) > MOST_ROWS:
        raise DataError(f"{len(document['rows']):,} rows; at most {MOST_ROWS:,} are drawn")
    rows = [
        Row(
            method=plain(_label(row["method"])),
            key=str(row["key"])[:16],
            accuracy=estimate_of({**row["accuracy"], "mean": _number(row["accuracy"]["mean"])}),
            **{name: _number(row[name]) for name in _NUMBERS},
        )
        for row in document["rows"]
    ]
    return Sweep(_label(document["task"]), _number(document["clean"]), "", "", tuple(rows))


_NUMBERS = ("budget", "fraction", "write_cycles", "total_write_cycles", "reads", "low", "high")


def _sweep(document: Mapping[str, Any]) -> Drawn | None:
    found = sweep_of(document)
    if not any(row.write_cycles > 0 for row in found.rows):
        return None
    caption = (
        "The mean accuracy over chips with its 95 % band, against the write cycles spent. What to see: a line that "
        "leaves the dotted one (nothing verified) further left reaches the dashed one (exact weights) for less."
    )
    return accuracy_figure(found), caption


def _plan(document: Mapping[str, Any]) -> Drawn | None:
    tried = sorted((_number(trial["budget"]), _number(trial["drop"]["mean"])) for trial in document["history"])
    if len(tried) < 2:
        return None
    allowed = _number(document["max_drop"])
    drops = [100 * drop for _, drop in tried]
    budgets = [100 * budget for budget, _ in tried]
    label = "write cycles, % of verifying everything"
    figure = lines(budgets, {"drop": drops}, label, "accuracy lost, points", level=(100 * allowed, "allowed"))
    return figure, "Budgets that the search tried. What to see: the answer is the leftmost one below the dashed line."


def _chips(document: Mapping[str, Any]) -> Drawn | None:
    values = sorted(100 * _number(value) for value in document["chips"]["values"])
    if len(values) < 2:
        return None
    least = 100 * (_number(document["clean"]) - _number(document["max_drop"]))
    places = [float(place) for place in range(1, len(values) + 1)]
    figure = lines(places, {"": values}, "chips, from the worst to the best", "accuracy %", level=(least, "promised"))
    return figure, "Each chip's accuracy. What to see: how many single chips fall below what was promised of the mean."


def _tensors(document: Mapping[str, Any]) -> Drawn | None:
    found = [_share(row["tensor"], row["cells_chosen"]) for row in document["tensors"]]
    caption = "The share of each tensor's cells that is verified. What to see: which layers the accuracy hangs on."
    return bars(found, "cells verified, %"), caption


def _chips_by_way(document: Mapping[str, Any]) -> Drawn | None:
    found = [_bar(row["verified"], row["mean"], row["stderr"], 100) for row in document["results"]]
    caption = "Mean accuracy over noisy chips. What to see: how near the chosen fraction comes to verifying all."
    return bars(found, "accuracy %, ± one standard error"), caption


def _laws(document: Mapping[str, Any]) -> Drawn | None:
    laws = document.get("laws", [])
    metric, label = ("nll", "negative log-likelihood, nats") if laws and "nll" in laws[0] else ("rmse", "RMSE")
    if not laws or metric not in laws[0]:
        return None
    found = [_bar(law["name"], law[metric]["mean"], law[metric]["stderr"]) for law in laws]
    caption = "Each law's loss on the test data, ± one standard error over examples. What to see: lower is better, and "
    return bars(found, label), caption + "a gap of less than two errors may be chance."


def _trained(document: Mapping[str, Any]) -> Drawn | None:
    found = []
    for law in document["laws"]:
        accuracy, full = law["average"]["accuracy"], law["activations"] == "full"
        name = f"{law['law']}, {'full' if full else 'quantized'}"
        found.append(_bar(name, 1 - _number(accuracy["mean"]), accuracy["stderr"], 100))
    caption = (
        "Test error with quantized and with full activations. What to see: the average below the last iterate, and "
    )
    return bars(found, "test error %, ± one standard error"), caption + "how little packing it costs."


def _disk(document: Mapping[str, Any]) -> Drawn | None:
    found = [Bar(_label(part), _number(size), readable(_number(size))) for part, size in document["disk"].items()]
    caption = "Bytes on disk by part once recording is over. What to see: rows are nearly all of it."
    return bars([bar for bar in found if bar.value > 0], "bytes", ticks=readable), caption


def _tuned(document: Mapping[str, Any]) -> Drawn | None:
    history = document["history"]
    if len(history) < 2:
        return None
    steps = [_number(step) for step, _ in history]
    series = {_label(name): [100 * _number(scores[name]) for _, scores in history] for name in history[0][1]}
    caption = (
        "Scores on training examples held back, while all train together. What to see: no line ends below its start."
    )
    return lines(steps, series, "steps", "score, % of the metric"), caption


def _converted(document: Mapping[str, Any]) -> Drawn | None:
    found = []
    for name, moved in document["moved"].items():
        for key, way in (("nearest", "to nearest"), ("after", "by example")):
            rise = 1000 * _number(moved[key])
            found.append(Bar(_label(f"{name}, {way}"), rise, f"{rise:.2g}"))
    caption = (
        "By how much the loss of a network's own earlier predictions rose, in thousandths. What to see: what rounding "
        "by example saves."
    )
    return (bars(found, "rise of the loss x 1000"), caption) if found else None


def _tenants(document: Mapping[str, Any]) -> Drawn | None:
    found = []
    for name, evaluation in document["tenants"].items():
        accuracy = evaluation["average"].get("accuracy")
        if accuracy is not None:
            found.append(_bar(name, accuracy["mean"], accuracy["stderr"], 100))
    return (bars(found, "test accuracy %"), "What to see: what sharing has left to each network.") if found else None


def _occupancy(document: Mapping[str, Any]) -> Drawn | None:
    names = [f"{count} networks" if count != 1 else "1 network" for count in range(len(document["occupancy"]))]
    pairs = zip(names, document["occupancy"], strict=True)
    found = [Bar(name, _number(count), f"{_number(count):,.0f}") for name, count in pairs]
    caption = "How many networks stand on how many positions. What to see: what is under two or more is memory saved."
    return bars(found, "positions"), caption


def _needs(document: Mapping[str, Any]) -> Drawn | None:
    rows = document.get("posterior", {}).get("formats")
    if not rows:
        return None
    found = [Bar(_label(row["format"]), _number(row["row_bytes"]), readable(_number(row["row_bytes"]))) for row in rows]
    caption = "What to see: what fewer bits save, for every recorded iterate."
    return bars(found, "a row of a posterior", ticks=readable), caption


DRAWS: Mapping[str, Draw] = {
    "cim sweep": _sweep,
    "cim plan": _plan,
    "cim evaluate": _chips,
    "cim rank": _tensors,
    "cim run": _chips_by_way,
    "posterior run": _laws,
    "posterior evaluate": _laws,
    "posterior plan": _disk,
    "train": _trained,
    "pages tune": _tuned,
    "pages convert": _converted,
    "pages evaluate": _tenants,
    "pages list": _occupancy,
    "inspect": _needs,
}


def _bar(name: Any, value: Any, stderr: Any, factor: float = 1.0) -> Bar:
    mean, error = factor * _number(value), 0.0 if stderr is None else factor * _number(stderr)
    digits = 1 if factor > 1 else 3
    text = f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")
    return Bar(_label(name), mean, text, error)


def _share(name: Any, value: Any) -> Bar:
    share = 100 * _number(value)
    return Bar(_label(name), share, f"{share:.1f}")


def _label(name: Any) -> str:
    return short(clipped(text_of(name)))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e100:
        raise ValueError(f"{repr(value)[:40]} is not a finite number")
    return float(value)

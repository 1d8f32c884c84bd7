"""`weightbank report`: one HTML page from the `--json` output of any command."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightbank.cli.console import Json, note, show_facts
from weightbank.errors import DataError

if TYPE_CHECKING:
    from weightbank.report.pictures import Drawn

MOST_ROWS, MOST_PAIRS, MOST_STRIPS = 1000, 300, 40
"""That are drawn: rows of an experiment, pairs of a heat map, networks of a pool."""

EXAMPLES = "Example:\n\nweightbank report digits-sweep/sweep.json -o sweep.html"


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT.json...", help="What commands printed with --json, or sweep.json.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "What it saved and what it cost",
    json: Json = False,
) -> None:
    """Make one self-contained page of results: figures with captions, every number as text; light, dark, any width.

    The page runs no script and loads nothing. Without matplotlib (weightbank[report]) it has tables only, and says so.
    """
    from weightbank.report.page import page, section_of
    from weightbank.report.results import load_result
    from weightbank.store.media import Directory

    draws = {"pages run": _experiment, "pages plot": _profile}
    sections = [section_of(load_result(path), draws) for path in results]
    text = page(sections, title=title).encode()
    Directory(output.parent).replace(output.name, text)
    missing = [message for section in sections for message in section.notes]
    for message in dict.fromkeys(missing):
        note(message)
    figures = sum(len(section.pictures) for section in sections)
    facts = {"file": str(output), "sections": len(sections), "figures": figures, "bytes": len(text)}
    show_facts(facts, json=json)


def _experiment(document: Any) -> "Drawn":
    """The figure that `pages run` draws, of as many rows as it is made for, with short names."""
    from weightbank.cli.pages_figures import figure_of
    from weightbank.report.charts import plain, short

    experiment, rows = str(document["experiment"]), document["rows"]
    most = MOST_PAIRS if experiment == "sharing" else MOST_ROWS
    if len(rows) > most:
        raise DataError(f"{len(rows):,} rows of '{experiment}'; at most {most:,} are drawn")
    named = [{key: plain(short(part)) if isinstance(part, str) else part for key, part in row.items()} for row in rows]
    return figure_of(experiment, named), "What was measured; the table below says what each column is."


def _profile(document: Any) -> "Drawn":
    """The figure that `pages plot` draws, of as many networks as it is made for."""
    from weightbank.cli.pages_plot import figure_of
    from weightbank.report.charts import plain, short

    found, size = document["profile"], document["positions"]
    if len(found) > MOST_STRIPS or any(len(values) > MOST_ROWS for values in found.values()):
        raise DataError(f"{len(found)} strips; at most {MOST_STRIPS} of {MOST_ROWS:,} parts are drawn")
    if not all(math.isfinite(value) and value >= 0 for values in found.values() for value in values) or size < 1:
        raise DataError("a profile has numbers that are not finite or below 0")
    named = {plain(short(name)) if name != "networks" else name: values for name, values in found.items()}
    caption = "Importance of each network's weights along the pool. What to see: where several lie over one another."
    return figure_of(named, size), caption

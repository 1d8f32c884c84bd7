"""From an experiment's name to its rows, a table, a CSV file and a figure."""

import csv as spreadsheet
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from weightbank.cli.console import note, show_json, show_table
from weightbank.cli.pages_figures import figure_of
from weightbank.cli.pages_networks import digit_networks, members_of, read_table
from weightbank.errors import DataError
from weightbank.paging import experiments, measurements
from weightbank.paging.experiments import Member, Row, Setup
from weightbank.report.saving import drawing, save_figure


@dataclass(frozen=True)
class Wanted:
    """What is varied: numbers of networks, weights per page, penalties, formats."""

    counts: Sequence[int]
    sizes: Sequence[int]
    penalties: Sequence[float]
    formats: Sequence[str]


RUNS: dict[str, Callable[[Sequence[Member], Setup, Wanted], Iterator[Row]]] = {
    "networks": lambda members, setup, wanted: experiments.networks(members, setup, wanted.counts),
    "page-size": lambda members, setup, wanted: experiments.page_sizes(members, setup, wanted.sizes),
    "penalty": lambda members, setup, wanted: experiments.penalties(members, setup, wanted.penalties),
    "order": lambda members, setup, wanted: experiments.orders(members, setup),
    "formats": lambda members, setup, wanted: experiments.formats(members, setup, wanted.formats),
    "convergence": lambda members, setup, wanted: experiments.convergence(members, setup),
    "matching": lambda members, setup, wanted: measurements.matching(members, setup, wanted.sizes),
    "switching": lambda members, setup, wanted: measurements.switching(members, setup),
    "memory": lambda members, setup, wanted: measurements.memory(members, setup, wanted.counts),
    "sharing": lambda members, setup, wanted: measurements.sharing(members, setup),
    "importance": lambda members, setup, wanted: measurements.importances(members),
}
PERCENT = ("alone", "placed", "tuned", "nearest", "by_example")
LEFT_OUT = ("held", "finite", "bytes", "placing_seconds", "weights", "moved_nearest", "moved_by_example")
"""Of accuracies: columns that are in the CSV file and in JSON, but not printed."""


def run(
    experiment: str,
    table: str,
    setup: Setup,
    wanted: Wanted,
    *,
    first: int | None,
    cache: Path,
    csv: Path | None,
    figure: Path | None,
    json: bool,
) -> None:
    """Run, print, and write what was asked for; Ctrl-C leaves the rows so far in the CSV file."""
    networks = digit_networks() if table == "digits" else read_table(Path(table))
    if figure is not None:
        drawing()
        if figure.suffix not in (".svg", ".png"):
            raise DataError(f"{figure}: a figure ends in .svg or .png, not in '{figure.suffix}'")
    members = members_of(networks[:first], cache)
    rows: list[Row] = []
    with ExitStack() as stack:
        write = None
        if csv is not None:
            csv.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(csv.open("w", newline="", encoding="utf-8"))
            write = spreadsheet.writer(file)
        for row in RUNS[experiment](members, setup, wanted):
            if write is not None:
                if not rows:
                    write.writerow(row)
                write.writerow(["" if value is None else value for value in row.values()])
                file.flush()
            rows.append(row)
    if figure is not None:
        save_figure(figure_of(experiment, rows), figure)
    if json:
        show_json({"experiment": experiment, "networks": [member.name for member in members], "rows": rows})
    elif rows:
        columns = [name for name in rows[0] if "tuned" not in rows[0] or name not in LEFT_OUT]
        show_table(
            [name.replace("_", " ") for name in columns], [[_cell(row[name], name) for name in columns] for row in rows]
        )
    for path in (csv, figure):
        if path is not None:
            note(f"wrote {path}")


def _cell(value: str | int | float | bool | None, name: str) -> str:
    """For people: accuracies in percent."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{100 * value:.2f} %" if name in PERCENT else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value

"""The tour as one page: every number as text, figures where they help."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightbank.cli.touring_jobs import COLUMNS, THEORY, Stop, Theory
from weightbank.report.page import Section, page, section_of
from weightbank.report.results import Result, kind_of
from weightbank.report.tables import Table
from weightbank.store.media import Directory

LEAD = (
    "A network's weights are memory. Four ways to save or stretch it, on handwritten digits: what each saved, what it "
    "cost, and what the theory that joins them, a loss that rises by half the sum of curvature times squared error, "
    "says it should have cost."
)


def write_page(
    path: Path, posterior: Mapping[str, Any], sweep: Mapping[str, Any], stops: Sequence[Stop], theory: Sequence[Theory]
) -> None:
    """Write the page to `path`, and all documents beside it as `.json`; each file in one step."""
    table = Table("", COLUMNS, tuple(stop.cells for stop in stops))
    compared = Table("", THEORY, tuple(row.cells for row in theory))
    sections = [
        Section(
            "What was saved, what it cost",
            "Accuracy on test digits before and after. A device's accuracies are means over chips, the others of one "
            "network; ± is one standard error.",
            tables=(table,),
        ),
        Section(
            "Expected and measured",
            "The rise of the training loss when weights move. Expected: half the sum of curvature times squared error, "
            "for each law; in the last row, where all weights move by one known step, along that step. Measured: "
            "draws. The two agree while steps are small.",
            tables=(compared,),
        ),
        _section("posterior", posterior),
        _section("noisy device", sweep),
    ]
    folder = Directory(path.parent)
    folder.replace(path.name, page(sections, title="weightbank: the tour", lead=LEAD).encode())
    document = tour_document(posterior, sweep, stops, theory)
    folder.replace(path.with_suffix(".json").name, json.dumps(document, indent=1, allow_nan=False).encode())


def tour_document(
    posterior: Mapping[str, Any], sweep: Mapping[str, Any], stops: Sequence[Stop], theory: Sequence[Theory]
) -> dict[str, Any]:
    """Everything the tour found, for machines."""
    return {
        **posterior,
        "stops": [dict(zip(COLUMNS, stop.cells, strict=True)) for stop in stops],
        "theory": [row.__dict__ for row in theory],
        "sweep": dict(sweep),
    }


def _section(name: str, document: Mapping[str, Any]) -> Section:
    plain = json.loads(json.dumps(document))
    return section_of(Result(name, kind_of(plain), plain))

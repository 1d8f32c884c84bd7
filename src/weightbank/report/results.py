"""Results of commands, as their `--json` prints them, read back with bounds: which command, and what to see in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightbank.errors import DataError
from weightbank.store.media import Directory

LIMIT = 8 << 20
"""The largest file that is read, in bytes."""

MOST_ITEMS, DEEPEST = 200_000, 12
"""Values in a document, and how deep they may be nested."""


@dataclass(frozen=True)
class Kind:
    """What one command prints: the keys it is known by, a title, and what to see."""

    command: str
    keys: frozenset[str]
    title: str
    see: str


def _kind(command: str, keys: str, title: str, see: str) -> Kind:
    return Kind(command, frozenset(keys.split()), title, see)


KINDS = (
    _kind("inspect", "inspected", "What each job would need", "Bytes, cells and times before any work."),
    _kind(
        "cim sweep",
        "task clean fingerprint weights rows",
        "Accuracy against write cycles",
        "How many of the write cycles of verifying everything buy how much accuracy, for each way of choosing what to "
        "verify; all ways program the same chips.",
    ),
    _kind(
        "cim plan",
        "policy write_cycles history met device",
        "The fewest write cycles that keep the accuracy",
        "What a search for the smallest budget tried and found, and whether the drop it was allowed is kept.",
    ),
    _kind(
        "cim evaluate",
        "plan chips quantile_05 within",
        "Later chips programmed by a plan",
        "What single chips score that the plan has not seen; the drop was promised of their mean.",
    ),
    _kind(
        "cim rank",
        "tensors cells_by_place on_device",
        "Which weights and cells deserve the exact write",
        "Where the curvature is, tensor by tensor, and which share of each a fraction of verifying picks.",
    ),
    _kind(
        "cim curvature",
        "curvatures score weights layout",
        "How much each weight matters",
        "Sums and spread of the curvatures; `holding` is the smallest share of weights that has nine tenths of a sum.",
    ),
    _kind(
        "cim run",
        "options on_device clean results",
        "A published experiment of selective write-verify",
        "Noisy chips of which nothing, everything, and the chosen fraction is verified.",
    ),
    _kind(
        "posterior run",
        "directory settings plan timings",
        "A recorded posterior",
        "What the laws made of the recorded rows predict, what they take, and the times of the run.",
    ),
    _kind(
        "posterior plan",
        "iterates disk working memory shortage",
        "What a posterior will take",
        "Bytes on disk and in memory before anything is recorded; a shortage, if any, by what is short.",
    ),
    _kind(
        "posterior plan --rule paper",
        "rule epochs",
        "Bytes by the published rule",
        "Epochs that fit into each size by the published rule, which counts three times the bytes of float32 rows.",
    ),
    _kind(
        "posterior info",
        "rows_ever bits_per_weight bytes_per_row",
        "What a recorded posterior holds",
        "Rows, format, steps and bytes of a posterior.",
    ),
    _kind(
        "posterior export",
        "of_rows share_of_variance rows bytes",
        "A posterior in one file",
        "How many rows were kept of how many, and which share of the variance is in them.",
    ),
    _kind(
        "train",
        "directory settings laws weights",
        "Training in few bits",
        "The last iterate, the average, and the average as it is packed. Compare lines of equal activations.",
    ),
    _kind(
        "posterior evaluate",
        "laws verdict",
        "What the laws of a posterior predict",
        "± is one standard error over test examples; another training run is not in it.",
    ),
    _kind(
        "pages tune",
        "committed before after history",
        "Networks of a pool trained together",
        "Each network's score on held-back training data, before and after; the result is kept if it harms none.",
    ),
    _kind(
        "pages convert",
        "committed before nearest after moved predicted",
        "A pool in another format",
        "How far the networks' predictions moved: every weight rounded to its nearest number, and rounded by example.",
    ),
    _kind(
        "pages list",
        "occupancy tenants packing positions",
        "Who is in a pool",
        "How many weights stand on how many positions, and what the networks would take apart.",
    ),
    _kind(
        "pages run",
        "experiment networks rows",
        "A published experiment of sharing a memory",
        "One line for each measurement.",
    ),
    _kind(
        "pages plot",
        "profile positions file",
        "A pool from left to right",
        "For each part of the pool how many networks stand there and how important their weights are.",
    ),
    _kind("pages create", "positions format reserve bytes file", "A new pool", "Its positions and bytes."),
    _kind(
        "pages add", "name weights shared packing zero_copy", "A network added to a pool", "How much of it is shared."
    ),
    _kind("pages remove", "removed left", "A network taken out of a pool", "Who is left."),
    _kind(
        "pages evaluate",
        "tenants",
        "What the networks of a pool score",
        "Each network on its test data, with the weights as the pool holds them.",
    ),
)
"""In this order: a document is of the first kind whose keys it all has."""


@dataclass(frozen=True, eq=False)
class Result:
    """One document and where it came from."""

    name: str
    kind: Kind
    document: Mapping[str, Any]


def load_result(path: str | Path) -> Result:
    """Read what a command printed with `--json`, or a saved sweep; nothing in it is believed or executed.

    Raises `StoreError` for no such file, `DataError` for one that is too large, is not JSON, is nested too deeply,
    or is of no command of this program.
    """
    path = Path(path)
    size = path.stat().st_size if path.is_file() else 0
    if size > LIMIT:
        raise DataError(f"{path}: {size:,} bytes; a result has at most {LIMIT:,}")
    text = Directory(path.parent).read(path.name, LIMIT)
    try:
        document = json.loads(text, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON document: {str(error)[:200]}; wanted the output of --json") from error
    return Result(path.name, kind_of(document, str(path)), document)


def kind_of(document: Any, where: str = "this document") -> Kind:
    """Which command printed a document; `DataError` if none did, or it has too many values."""
    if not isinstance(document, dict):
        raise DataError(
            f"{where}: a JSON {type(document).__name__}; wanted the object that a command prints with --json"
        )
    items = _count(document, 0, where)
    if items > MOST_ITEMS:
        raise DataError(f"{where}: {items:,} values; a result has at most {MOST_ITEMS:,}")
    for kind in KINDS:
        if kind.keys <= document.keys():
            return kind
    found = ", ".join(repr(key)[:40] for key in list(document)[:8]) or "nothing"
    raise DataError(f"{where}: not the --json output of a command of this program; it has {found}")


def _count(value: Any, depth: int, where: str) -> int:
    if depth > DEEPEST:
        raise DataError(f"{where}: nested more than {DEEPEST} deep, as no result of this program is")
    if isinstance(value, dict):
        return 1 + sum(_count(part, depth + 1, where) for part in value.values())
    if isinstance(value, list):
        return 1 + sum(_count(part, depth + 1, where) for part in value)
    return 1


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")

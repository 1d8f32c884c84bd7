"""Comparisons of laws as a table of at most 100 columns."""

from collections.abc import Callable, Sequence
from typing import Any

from weightbank.cli.console import say, say_wrapped, show_table
from weightbank.evaluation import Estimate
from weightbank.posterior import Compared, verdict
from weightbank.sizes import readable

_HEADS = {
    "accuracy": "accuracy %",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "auroc": "OOD AUROC",
    "rmse": "RMSE",
}


def comparison(rows: Sequence[Compared]) -> dict[str, Any]:
    """The comparison for machines."""
    return {"laws": [row.to_dict() for row in rows], "verdict": verdict(rows)}


def show_comparison(rows: Sequence[Compared]) -> None:
    """Print one law per line, with metrics ± standard error, bytes on disk and memory at the peak; then the verdict."""
    metrics = list(rows[0].metrics)
    columns = ["law", *(_HEADS[metric] for metric in metrics), "on disk", "RAM"]
    writers = {metric: _writer(metric, [row.metrics[metric] for row in rows]) for metric in metrics}
    cells = []
    for row in rows:
        memory = "?" if row.memory is None else readable(row.memory)
        cells.append([row.name, *(writers[m](row.metrics[m]) for m in metrics), readable(row.disk), memory])
    show_table(columns, cells)
    examples = len(rows[0].evaluation.targets)
    draws = max(row.evaluation.samples for row in rows)
    say(f"{examples:,} test examples, {draws} draws per law, ± one standard error over examples; one training run.")
    say_wrapped(verdict(rows))


def _writer(metric: str, found: Sequence[Estimate]) -> Callable[[Estimate], str]:
    """Numbers of one column with equally many decimals: as many as its smallest standard error asks for, 3 or 4."""
    spreads = [estimate.stderr for estimate in found if estimate.stderr]
    decimals = 4 if spreads and min(spreads) < 0.001 else 3
    factor, decimals = (100, 1) if metric == "accuracy" else (1, decimals)

    def write(estimate: Estimate) -> str:
        text = f"{factor * estimate.mean:.{decimals}f}"
        return text if estimate.stderr is None else f"{text}±{factor * estimate.stderr:.{decimals}f}"

    return write

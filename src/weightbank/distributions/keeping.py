"""Which rows `Moments` keeps: all, a window of the newest, or a sketch of bounded size."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from weightbank.errors import StoreError
from weightbank.store import RowLog


@dataclass(frozen=True)
class Window:
    """Keep the newest `rows` iterates (SWAG's K)."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise StoreError(f"Window({self.rows}); wanted at least 1 row")


@dataclass(frozen=True)
class Sketch:
    """Keep `rows` rows that stand for all iterates, by Frequent Directions (Liberty 2013, arXiv 1206.0594).

    Whatever the number of iterates, the scatter they stand for differs from the exact one by at most the total
    squared length of all deviations divided by `rows`, in spectral norm.
    """

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise StoreError(f"Sketch({self.rows}); wanted at least 2 rows")


Keep: TypeAlias = Literal["all"] | Window | Sketch


def ring_rows(keep: Keep) -> int | None:
    """Rows the log must hold at once; None for all. A sketch needs itself, as many new rows, and its successor."""
    if isinstance(keep, Window):
        return keep.rows
    return 3 * keep.rows if isinstance(keep, Sketch) else None


def oldest(log: RowLog, stop: int) -> int:
    """The number of the oldest row that was kept when the log had `stop` rows."""
    keep = log.manifest.keep
    return 0 if keep is None else max(log.journal.floor, stop - keep)


def describe(keep: Keep) -> dict[str, Any]:
    """A JSON value for the log's manifest."""
    if isinstance(keep, str):
        return {"keep": "all"}
    return {"keep": type(keep).__name__.lower(), "rows": keep.rows}


def parse(notes: Any) -> Keep:
    """The inverse of `describe`; anything unknown is "all"."""
    kinds: dict[str, type[Window] | type[Sketch]] = {"window": Window, "sketch": Sketch}
    kind, rows = (notes.get("keep"), notes.get("rows")) if isinstance(notes, dict) else (None, None)
    return kinds[kind](rows) if isinstance(kind, str) and kind in kinds and isinstance(rows, int) else "all"

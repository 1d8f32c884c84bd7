"""Any result as tables of text: facts by name, and a row for each of several like things."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from weightbank.sizes import readable

LONGEST_NAME, LONGEST_TEXT = 60, 2000
WIDE = 7
"""Tables of more columns are turned over if that makes them narrower."""
SPARSE = 3
"""Rows with so little in common that a table would have this many times their values are listed one by one."""

_BYTES = {"bytes", "disk", "memory", "working", "shortage", "size"}
_ESTIMATE = {"mean", "stderr", "n", "min", "max", "values"}
Cell: TypeAlias = str


@dataclass(frozen=True)
class Table:
    """A caption, the names of the columns, and rows whose first cell names them; all plain text, nothing escaped."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def tables_of(document: Mapping[str, Any]) -> list[Table]:
    """Every value of a document with nothing left out but repetitions: the draws of a mean over one draw.

    A dict of plain values becomes facts line by line; a list of dicts, or a dict of dicts, one row for each.
    """
    return list(_tables(document, ()))


def text_of(value: Any, name: str = "") -> str:
    """One value for people: five digits, thousands apart, bytes with their unit, an estimate with its error."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        plain = f"{value:,}" if abs(value) < 10**18 else f"{value:.5g}" if abs(value) < 10**300 else "beyond numbers"
        counts_bytes = not _BYTES.isdisjoint(name.lower().split())
        return f"{plain} ({readable(value)})" if counts_bytes and 1000 <= abs(value) < 10**18 else plain
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(text_of(part, name) for part in value) or "none"
    if isinstance(value, dict):
        if _is_estimate(value):
            return _estimate(value)
        return ", ".join(f"{_name(key)}: {text_of(part)}" for key, part in value.items()) or "none"
    return clipped(str(value), LONGEST_TEXT)


def clipped(text: str, most: int = LONGEST_NAME) -> str:
    """Text without control characters, at most so long."""
    plain = "".join(char if char.isprintable() else " " for char in text[: most + 1])
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _tables(document: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Table]:
    facts: list[tuple[str, str]] = []
    below: list[Table] = []
    parent = path[-1] if path else ""
    for key, value in document.items():
        name = _name(key)
        here = (*path, name)
        if _is_plain(value):
            facts.append((name, text_of(value, f"{parent} {name}")))
        elif _is_estimate(value):
            facts.append((name, _estimate(value)))
            if values := _several(value):
                facts.append((f"{name}: each", text_of(values)))
        elif isinstance(value, dict):
            rows = {_name(inner): part for inner, part in value.items()}
            alike = len(rows) > 0 and all(isinstance(part, dict) and not _is_estimate(part) for part in rows.values())
            below += [_rows(" / ".join(here), list(rows), list(rows.values()))] if alike else _tables(value, here)
        elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            below.append(_rows(" / ".join(here), [], value))
        else:
            entries = [part if isinstance(part, dict) else _numbered(part) for part in value]
            below.append(_rows(" / ".join(here), [], entries))
    if facts:
        yield Table(" / ".join(path), ("", "value"), tuple(facts))
    yield from below


def _rows(caption: str, names: Sequence[str], parts: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each part; turned over where that is narrower; line by line where parts have little in common."""
    word = caption.rpartition(" / ")[2]
    flat = [dict(_flat(part, (), word)) for part in parts]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    heads = list(names) or [str(number) for number in range(1, len(flat) + 1)]
    if len(columns) * len(flat) > SPARSE * sum(map(len, flat)) + 100:
        each = [(head, column, cell) for head, row in zip(heads, flat, strict=True) for column, cell in row.items()]
        return Table(caption, ("", "what", "value"), tuple(each))
    if not names and columns and all(row.get(columns[0]) for row in flat):  # the first column names the rows
        heads, columns, corner = [row[columns[0]] for row in flat], columns[1:], columns[0]
    else:
        corner = ""
    cells = [[row.get(column, "") for column in columns] for row in flat]
    if len(columns) > WIDE and len(flat) < len(columns):
        turned = tuple((column, *(row[place] for row in cells)) for place, column in enumerate(columns))
        return Table(caption, (corner, *heads), turned)
    return Table(caption, (corner, *columns), tuple((head, *row) for head, row in zip(heads, cells, strict=True)))


def _flat(part: Mapping[str, Any], path: tuple[str, ...], word: str) -> Iterator[tuple[str, str]]:
    """Names joined, each with its text."""
    for key, value in part.items():
        here = (*path, _name(key))
        name = " ".join(here)
        if isinstance(value, dict) and value and not _is_estimate(value):
            yield from _flat(value, here, word)
        else:
            yield name, text_of(value, f"{word} {name}")
            if _is_estimate(value) and (values := _several(value)):
                yield f"{name}: each", text_of(values)


def _numbered(value: Any) -> dict[str, Any]:
    """A line of a list of lists; a place and what was found there have names of their own."""
    if not isinstance(value, list):
        return {"value": value}
    if len(value) == 2 and isinstance(value[1], dict):
        return {"at": value[0], **value[1]}
    return {str(number): part for number, part in enumerate(value, 1)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(part, (dict, list)) for part in value)
    return not isinstance(value, dict) or not value


def _is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and {"mean", "stderr"} <= value.keys() <= _ESTIMATE


def _several(value: Mapping[str, Any]) -> list[Any]:
    """The draws of an estimate, if there are more than one."""
    values = value.get("values")
    return values if isinstance(values, list) and len(values) > 1 else []


def _estimate(value: Mapping[str, Any]) -> str:
    """The mean and its error with as many digits as the error has a meaning for, and the range of the draws."""
    mean, error, count = value["mean"], value["stderr"], value.get("n")
    if isinstance(mean, float) and isinstance(error, float) and 0 < error < 1e15 and abs(mean) < 1e15:
        decimals = min(max(0, 1 - math.floor(math.log10(error))), 12)
        text = f"{mean:,.{decimals}f} ± {error:,.{decimals}f}"
    else:
        text = text_of(mean) + ("" if error is None else f" ± {text_of(error)}")
    if "n" in value:
        text += f" (n = {text_of(count)}"
        several = count != 1 and {"min", "max"} <= value.keys()
        text += f", {text_of(value['min'])} to {text_of(value['max'])})" if several else ")"
    return text


def _name(key: str) -> str:
    return clipped(key.replace("_", " ")) or "(no name)"

"""What all commands share: errors as one line, tables for people, one JSON document for machines."""

import math
import os
import sys
from collections.abc import Iterable, Sequence
from json import dumps
from textwrap import fill
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from weightbank.errors import WeightbankError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
WIDTH = 100


class Commands(TyperGroup):
    """A group whose commands report the library's errors as one line `error: ...`, with exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except WeightbankError as error:
            note(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(1) from error


def note(text: str) -> None:
    """Print a line on stderr, as it is."""
    print(text, file=sys.stderr)


def say(text: str = "") -> None:
    """Print a line for people, as it is, on stdout."""
    print(text)


def say_wrapped(text: str) -> None:
    """Print sentences, one paragraph per line of `text`, in at most 100 columns."""
    for line in text.splitlines():
        print(fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def show_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a command; numbers that are not finite become null."""
    print(dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a plain table, its first column aligned to the left and the others to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    print()
    _console().print(table)
    print()


def show_facts(document: dict[str, Any], *, json: bool) -> None:
    """Print a flat document as it is for machines, or line by line for people."""
    if json:
        show_json(document)
        return
    facts = {name.replace("_", " "): value for name, value in document.items() if value is not None}
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_plain(value)}".rstrip())


def _console() -> Any:
    from rich.console import Console

    fixed = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=WIDTH if fixed else None, highlight=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "none"
    return f"{value:.5g}" if isinstance(value, float) else str(value)

"""Progress bars for long work, on terminals only: nothing is printed into a pipe or a file."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """A counter that may or may not have a bar; `advance` and `note` are cheap when it has none."""

    def __init__(self, description: str, total: int | None) -> None:
        self._bar = None
        self._description = description
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(description, total=total)

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def note(self, text: str) -> None:
        """Show a few words behind the description, e.g. the loss."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._description} {text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Progress]:
    """A bar for the time of a `with` block."""
    bar = Progress(description, total)
    try:
        yield bar
    finally:
        bar.close()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and advance a bar by each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total) as bar:
        for item in items:
            yield item
            bar.advance()

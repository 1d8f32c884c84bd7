"""The results file of the published scripts: two columns, no header, every row on the disk before the next begins."""

import csv
import io
import os
from pathlib import Path

from weightbank.errors import StoreError


class Timings:
    """Rows (label, value) in a CSV file that a killed run leaves readable and a resumed one goes on with.

    Args:
        path: the file; None keeps the rows in memory only.
        resume: go on with the file that is there, less a last line that was not finished; else there must be none.

    Raises `StoreError` if the file is there and `resume` is not given, or cannot be written.
    """

    def __init__(self, path: str | Path | None, *, resume: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[str, float] = {}
        if self.path is None:
            return
        if self.path.exists() and not resume:
            raise StoreError(f"{self.path}: there are results here already; name another file, or move this one")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                file.seek(0)
                data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                file.truncate(len(whole))
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written: {error.strerror}") from error
        for row in csv.reader(io.StringIO(whole.decode(errors="replace"))):
            if len(row) == 2:
                self.rows[row[0]] = _number(row[1])

    def put(self, label: str, value: float) -> None:
        """Append one row and hand it to the disk; a label that is there already keeps its value."""
        if label in self.rows:
            return
        self.rows[label] = value
        if self.path is None:
            return
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([label, value])
        try:
            with open(self.path, "ab") as file:
                file.write(line.getvalue().encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written: {error.strerror}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")

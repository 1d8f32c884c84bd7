from pathlib import Path

import pytest

from weightbank.errors import StoreError
from weightbank.posterior.timings import Timings


def test_two_columns_without_a_header_and_each_row_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "timings.csv"
    timings = Timings(path)
    timings.put("posterior size (byte)", 123)
    assert path.read_text() == "posterior size (byte),123\n"
    timings.put("law, with a comma: nll", 0.25)
    assert path.read_text().splitlines()[1] == '"law, with a comma: nll",0.25'


def test_a_resumed_file_loses_its_torn_line_and_repeats_no_row(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    path.write_text("a,1.5\nb,2\nc,3.1")
    timings = Timings(path, resume=True)
    timings.put("b", 99.0)
    timings.put("c", 4.0)
    assert path.read_text() == "a,1.5\nb,2\nc,4.0\n"
    assert timings.rows == {"a": 1.5, "b": 2.0, "c": 4.0}


def test_a_new_run_does_not_overwrite_results(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    path.write_text("a,1\n")
    with pytest.raises(StoreError, match="results here already"):
        Timings(path)
    assert path.read_text() == "a,1\n"


def test_without_a_file_rows_are_kept_in_memory() -> None:
    timings = Timings(None)
    timings.put("a", 1.0)
    assert timings.rows == {"a": 1.0}

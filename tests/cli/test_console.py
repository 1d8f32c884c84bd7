import json
from collections.abc import Callable
from typing import Any

import pytest

from weightbank.cli.console import say_wrapped, show_facts, show_json, show_table


def test_an_error_of_the_library_is_one_line_and_exit_code_1(cli: Callable[..., Any]) -> None:
    result = cli("posterior", "info", "nowhere")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: nowhere: no rows here")
    assert result.stderr.count("\n") == 1


def test_a_wrong_option_is_exit_code_2(cli: Callable[..., Any]) -> None:
    assert cli("posterior", "plan", "100", "--keeep", "all").exit_code == 2


def test_numbers_that_are_not_finite_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": float("nan"), "b": [float("inf"), 1.5], 3: (1, None)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "3": [1, None]}


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["law", "NLL"], [["[bold]a", "0.25±0.01"], ["b", "1"]])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["", "law            NLL", "[bold]a  0.25±0.01", "b                1", ""]


def test_sentences_are_wrapped_at_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    say_wrapped("word " * 50 + "\nsecond")
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert lines[-1] == "second"


def test_facts_are_for_people_or_machines(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"rows": 12345, "mean_length": 0.5, "damaged": [], "nothing": None, "whole": True}
    show_facts(document, json=False)
    assert capsys.readouterr().out == "rows         12,345\nmean length  0.5\ndamaged      none\nwhole        yes\n"
    show_facts(document, json=True)
    assert json.loads(capsys.readouterr().out) == document

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightbank.cli.planning import count_weights, parse_keep
from weightbank.distributions import Sketch, Window
from weightbank.errors import FormatError, LayoutError
from weightbank.posterior import paper_table, plan


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("model_2conv2fc", 21_840),
        ("model_4fc", 2_797_010),
        ("mlp", 4_810),
        ("2_797_010", 2_797_010),
        ("2,797,010", 2_797_010),
        ("110M", 110_000_000),
        ("1.5b", 1_500_000_000),
    ],
)
def test_a_model_is_a_name_or_a_number(text: str, count: int) -> None:
    assert count_weights(text) == count


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(LayoutError, match="model_2conv2fc"):
        count_weights("resnet")


def test_what_to_keep_is_parsed() -> None:
    assert [parse_keep(text) for text in ("all", "window:20", "sketch:50")] == ["all", Window(20), Sketch(50)]
    for text in ("window", "window:0", "ring:3", "window:-1", ""):
        with pytest.raises(FormatError, match="wanted all, window:20 or sketch:50"):
            parse_keep(text)


def test_the_published_table_is_printed_whole(cli: Callable[..., Any]) -> None:
    result = cli("posterior", "plan", "--rule", "paper", "--json")
    found = json.loads(result.stdout)["epochs"]
    assert found == {f"{target} GB": row for target, row in paper_table().items()}
    text = cli("posterior", "plan", "--rule", "paper").stdout
    assert "700 GB" in text
    assert "4,452" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_published_rule_for_one_model(cli: Callable[..., Any]) -> None:
    result = cli("posterior", "plan", "model_4fc", "--rule", "paper", "--epochs", "75", "--budget", "700GB", "--json")
    found = json.loads(result.stdout)
    assert found["bytes"] == 12 * 2_797_010 * (45_000 + 3) + 12
    assert found["epochs"] == {"700000000000": 35}


def test_the_real_bytes_are_those_of_plan(cli: Callable[..., Any]) -> None:
    result = cli("posterior", "plan", "21840", "-e", "2", "-b", "100", "-r", "3", "--format", "bfp8", "--json")
    found = json.loads(result.stdout)
    expected = plan(21_840, iterates=400, format="bfp8", checkpoint=True)
    assert (found["iterates"], found["bytes"]) == (400, expected.bytes)
    assert found["disk"] == expected.disk


def test_a_plan_that_does_not_fit_is_exit_code_1(cli: Callable[..., Any]) -> None:
    result = cli("posterior", "plan", "1M", "--iterates", "1000", "--budget", "1GB")
    assert result.exit_code == 1
    assert "no, missing" in result.stdout


def test_without_iterates_the_budget_is_filled(cli: Callable[..., Any]) -> None:
    found = json.loads(cli("posterior", "plan", "100K", "--budget", "100MB", "--json").stdout)
    assert found["iterates"] == plan(100_000, budget=100_000_000, checkpoint=True).iterates


def test_a_model_or_a_number_is_needed(cli: Callable[..., Any]) -> None:
    assert cli("posterior", "plan").exit_code == 2


def test_times_are_measured_unless_they_are_not_wanted(cli: Callable[..., Any], tmp_path: Path) -> None:
    found = json.loads(cli("posterior", "plan", "100K", "--iterates", "50", "--json").stdout)
    assert found["seconds"]["write"] > 0
    assert found["seconds"]["sample"] > 0
    assert not list(tmp_path.iterdir())
    found = json.loads(cli("posterior", "plan", "100K", "--iterates", "50", "--no-measure", "--json").stdout)
    assert found["seconds"] == {}


def test_where_nothing_can_be_written_the_bytes_are_said_all_the_same(cli: Callable[..., Any]) -> None:
    result = cli("posterior", "plan", "100K", "--iterates", "50", "-p", "/proc/1")
    assert result.exit_code == 1
    assert "no times" in result.stderr
    assert "on disk" in result.stdout

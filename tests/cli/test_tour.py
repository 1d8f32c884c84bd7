import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
import torch

import weightbank as wb
from weightbank.cli import touring, touring_jobs
from weightbank.cli.tour import OWN_MODEL


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touring, "SKIPPED", 1)
    monkeypatch.setattr(touring, "EPOCHS", 3)
    monkeypatch.setattr(touring, "DRAWS", 3)
    for name, value in {"WIDTHS": (24, 16), "TRAINED": 2, "CHIPS": 8, "STEPS": 10, "DRAWS": 2}.items():
        monkeypatch.setattr(touring_jobs, name, value)


@pytest.mark.usefixtures("short")
def test_the_tour_shows_all_laws_and_keeps_nothing(
    cli: Callable[..., Any], tmp_path: Path, validator: Callable[[str], Any]
) -> None:
    threads = torch.get_num_threads()
    result = cli("tour", "--json")
    document = json.loads(result.stdout)
    validator("tour").validate(document)
    roles = ["last", "mean", "diagonal", "window", "spread", "all", "other", "snapshots"]
    assert [law["role"] for law in document["laws"]] == roles
    assert all("auroc" in law for law in document["laws"])
    assert document["iterates"] == 60
    assert document["bytes"]["bfp8"] < document["bytes"]["fp32"]
    assert not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads
    assert {stop["job"] for stop in document["stops"]} == {"noisy device", "low precision", "one memory", "one budget"}
    assert all(row["measured"] == row["measured"] for row in document["theory"])


@pytest.mark.usefixtures("short")
def test_the_page_has_every_row_and_its_json_beside_it(cli: Callable[..., Any], tmp_path: Path) -> None:
    result = cli("tour", "--page", "tour.html")
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "tour.html").read_text()
    document = json.loads((tmp_path / "tour.json").read_text())
    assert "<script" not in text
    for stop in document["stops"]:
        assert all(escape(value) in text for value in stop.values())
    for row in document["theory"]:
        assert f"{row['expected']:.4f}" in text
    assert document["laws"][0]["role"] == "last"
    assert "<svg" in text


@pytest.mark.usefixtures("short")
def test_a_directory_is_kept_and_must_be_empty(cli: Callable[..., Any], tmp_path: Path) -> None:
    result = cli("tour", "--directory", "kept")
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 100
    assert len(wb.RowLog(tmp_path / "kept" / "bfp8", read_only=True)) == 60
    assert "not an empty directory" in cli("tour", "--directory", "kept").stderr


def test_equal_seeds_make_equal_tasks_with_a_fifth_of_the_labels_drawn() -> None:
    first, second, other = (touring.noisy_digits(seed) for seed in (0, 0, 1))
    assert torch.equal(first.theta(), second.theta())
    assert not torch.equal(first.theta(), other.theta())
    given, drawn = (task.train.y for task in (first, other))  # type: ignore[union-attr]
    # 60 labels are drawn by each seed, a tenth of them as they were: at most 120 differ
    assert 60 < int((given != drawn).sum()) <= 120


def test_the_three_lines_for_an_own_model_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = touring.noisy_digits(0)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05)
    lines = [line.strip() for line in OWN_MODEL.splitlines()[1:]]
    assert len(lines) == 3
    code = "\n".join(lines).replace("count=30", "count=1").replace("print", "shown.append")
    names: dict[str, Any] = {"wb": wb, "task": task, "optimizer": optimizer, "shown": []}
    exec(code, names)
    assert names["shown"][0].samples == 30
    names["moments"].close()


@pytest.mark.slow
def test_the_whole_tour_has_2400_iterates(cli: Callable[..., Any]) -> None:
    document = json.loads(cli("tour", "--json").stdout)
    assert document["iterates"] == 2400
    full = next(law for law in document["laws"] if law["role"] == "all")
    assert full["rows"] == 2400
    assert full["disk"] > 100 * 4 * 17_226  # rows take a hundred times the network's bytes and more
    assert document["verdict"]
    graded = [stop for stop in document["stops"] if "graded" in stop["what"]]
    magnitude = next(stop for stop in document["stops"] if "magnitude" in stop["what"])
    assert float(graded[0]["after"].split()[0]) > float(magnitude["after"].split()[0]) + 10  # 12 standard errors
    for stop in document["stops"]:
        if stop["job"] != "noisy device":  # 500 test digits: one standard error is a point
            assert float(stop["after"].split()[0]) > float(stop["before"].split()[0]) - 3
    for row in document["theory"]:
        assert row["measured"] - 4 * row["stderr"] < 1.5 * row["expected"]
        assert row["measured"] + 4 * row["stderr"] > row["expected"] / 1.5

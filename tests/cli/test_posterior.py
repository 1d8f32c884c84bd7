import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weightbank.cli.settings import Settings
from weightbank.distributions import Gaussian, Moments, Sketch
from weightbank.layout import Layout
from weightbank.store import RowLog

SHORT = ("--epochs", "2", "--skip-epochs", "1", "--batch-size", "300", "--samples", "2")


def rows_of(directory: Path) -> list[list[str]]:
    return list(csv.reader((directory / "timings.csv").read_text().splitlines()))


def recorded(directory: Path) -> Moments:
    log = RowLog(directory / "rows", read_only=True)
    assert log.manifest.layout is not None
    return Moments(log.manifest.layout, rows=log)


def test_a_run_leaves_rows_settings_checkpoint_and_results(cli: Callable[..., Any], tmp_path: Path) -> None:
    result = cli("posterior", "run", "--path", "run", "--seed", "3", *SHORT, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    run = tmp_path / "run"
    assert Settings.load(run).seed == document["settings"]["seed"] == 3
    assert recorded(run).count == document["plan"]["iterates"] == 5  # 1,297 examples in batches of 300
    assert [law["role"] for law in document["laws"]] == ["last", "mean", "diagonal", "all", "snapshots"]
    labels = [row[0] for row in rows_of(run)]
    assert labels[:7] == [
        "posterior size (byte)",
        "train data loading time (s)",
        "test data loading time (s)",
        "make model time (s)",
        "make posterior time (s)",
        "epoch 0 time (s)",
        "epoch 1 time (s)",
    ]
    assert labels[7:10] == ["posterior finalize time (s)", "total experiment time (s)", "total script time (s)"]
    assert dict(rows_of(run))["last iterate: nll"] == str(document["laws"][0]["nll"]["mean"])
    assert document["timings"].keys() == set(labels)


def test_the_published_flags_are_understood(cli: Callable[..., Any], tmp_path: Path) -> None:
    arguments = "mlp -K 3 -b 300 -n 0.01 -m 0.5 -e 2 -r 2 -c -1 -s elsewhere -csv results/times.csv --samples 0"
    assert cli("posterior", "run", *arguments.split()).exit_code == 0
    settings = Settings.load(tmp_path / "elsewhere")
    assert (settings.keep, settings.batch_size, settings.learning_rate, settings.momentum) == (
        "window:3",
        300,
        0.01,
        0.5,
    )
    assert (settings.epochs, settings.every, settings.device) == (2, 2, "cpu")
    assert (tmp_path / "results" / "times.csv").exists()
    moments = recorded(tmp_path / "elsewhere")
    assert moments.count == 4  # minibatches 2 and 4 of 5 in each of two epochs
    assert moments.rows is not None
    assert moments.rows.steps == [2, 4, 7, 9]


def test_a_second_run_into_the_same_directory_is_refused(cli: Callable[..., Any], tmp_path: Path) -> None:
    cli("posterior", "run", "--path", "run", *SHORT)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()}
    result = cli("posterior", "run", "--path", "run", *SHORT)
    assert result.exit_code == 1
    assert "weightbank posterior resume run" in result.stderr
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


def test_a_finished_run_can_be_resumed_to_the_same_numbers(cli: Callable[..., Any], tmp_path: Path) -> None:
    first = json.loads(cli("posterior", "run", "--path", "run", *SHORT, "--json").stdout)
    rows = rows_of(tmp_path / "run")
    again = json.loads(cli("posterior", "resume", "run", "--samples", "2", "--json").stdout)
    assert [law["nll"] for law in again["laws"]] == [law["nll"] for law in first["laws"]]
    assert rows_of(tmp_path / "run") == rows


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model_2fc"], "--data mnist:FOLDER"),
        (["resnet"], "no model is called 'resnet'"),
        (["--data", "mnist:nowhere"], "nowhere"),
        (["--data", "cats"], "names no data"),
        (["--format", "int3"], "not a number format"),
        (["--keep", "some"], "wanted all, window:20"),
        (["--epochs", "1", "--skip-epochs", "1"], "wanted at least 1"),
        (["--device", "cuda:77"], "use --device cpu"),
        (["--medium", "dax", "--node", "no-such-node"], "no-such-node"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_written(
    cli: Callable[..., Any], tmp_path: Path, arguments: list[str], words: str
) -> None:
    result = cli("posterior", "run", "--path", "run", *arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-K", "3", "--keep", "sketch:2"],
        ["--medium", "dax"],
        ["--node", "/dev/dax0.0"],
        ["--schedule", "swag"],
        ["--lr", "-1"],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--swa-lr", "0"],
    ],
)
def test_options_that_cannot_be_are_exit_code_2(cli: Callable[..., Any], tmp_path: Path, arguments: list[str]) -> None:
    assert cli("posterior", "run", "--path", "run", *arguments).exit_code == 2
    assert not (tmp_path / "run").exists()


def test_too_small_a_disk_is_found_out_before_training(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["weightbank.posterior.plan"], "free_disk", lambda path: 1_000_000)
    result = cli("posterior", "run", "--path", "run")
    assert result.exit_code == 1
    assert "1.0 MB are free" in result.stderr
    assert not (tmp_path / "run").exists()


def test_rows_in_memory_leave_nothing_behind(cli: Callable[..., Any], tmp_path: Path) -> None:
    result = cli("posterior", "run", "--path", "run", "--medium", "memory", *SHORT, "--json")
    assert len(json.loads(result.stdout)["laws"]) == 5
    assert not list(tmp_path.iterdir())


def test_schedule_and_batch_norm_run_through(cli: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ("small_cnn", "--schedule", "swag", "--keep", "sketch:2", "--format", "bf16", "--durability", "commit")
    assert cli("posterior", "run", *arguments, "--path", "run", *SHORT).exit_code == 0
    assert recorded(tmp_path / "run").keep == Sketch(2)


def test_info_says_what_is_there(cli: Callable[..., Any], tmp_path: Path) -> None:
    cli("posterior", "run", "--path", "run", "--format", "bfp8", *SHORT)
    moments = recorded(tmp_path / "run")
    found = json.loads(cli("posterior", "info", "run", "--verify", "--json").stdout)
    assert (found["model"], found["rows"], found["keep"], found["damaged"]) == ("mlp", 5, "all", [])
    assert (found["format"], found["steps"]) == ("BlockFloatingPoint(8, block=64)", "6 to 10")
    assert found["layout"] == moments.layout.fingerprint
    assert found["trace_of_variance"] == pytest.approx(float(moments.variance().double().sum()))
    assert found["length_of_mean"] == pytest.approx(float(moments.mean().double().norm()))
    assert found["bytes"] == sum(file.stat().st_blocks * 512 for file in (tmp_path / "run" / "rows").iterdir())
    assert "BlockFloatingPoint" in cli("posterior", "info", "run").stdout


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A plain log of 1,000 rows, of which the one with number 3 is damaged."""
    with RowLog(tmp_path / "log") as log:
        log.create(5)
        for number in range(1000):
            log.append(torch.full((5,), float(number)))
    with open(tmp_path / "log" / "rows-000000.bin", "r+b") as stream:
        stream.seek(3 * 4096)
        stream.write(b"\x01")
    return tmp_path / "log"


def test_info_refuses_a_damaged_log_unless_it_may_salvage(cli: Callable[..., Any], damaged: Path) -> None:
    result = cli("posterior", "info", str(damaged))
    assert result.exit_code == 1
    assert "the first is row 3" in result.stderr
    found = json.loads(cli("posterior", "info", str(damaged), "--salvage", "--json").stdout)
    assert (found["rows"], found["weights"]) == (3, 5)
    assert "iterates" not in found  # a plain log has no layout, so no moments


def test_verify_reads_beyond_what_opening_checks(
    cli: Callable[..., Any], damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["weightbank.store.recovery"], "_TAIL_BYTES", 4096)
    assert cli("posterior", "info", str(damaged)).exit_code == 0
    result = cli("posterior", "info", str(damaged), "--verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["damaged"] == [3]


def test_evaluation_of_a_run_equals_that_at_its_end(cli: Callable[..., Any]) -> None:
    first = json.loads(cli("posterior", "run", "--path", "run", "--format", "bfp8", *SHORT, "--json").stdout)
    again = json.loads(cli("posterior", "evaluate", "run", "--samples", "2", "--json").stdout)
    assert [law["nll"] for law in again["laws"]] == [law["nll"] for law in first["laws"]]
    assert again["verdict"] == first["verdict"]


def test_evaluation_takes_its_options(cli: Callable[..., Any]) -> None:
    cli("posterior", "run", "--path", "run", *SHORT)
    options = ("--samples", "2", "--thin", "2", "--burn-in", "1", "--covariance", "sample", "--ood", "photos")
    found = json.loads(cli("posterior", "evaluate", "run", *options, "--json").stdout)
    assert [law["name"] for law in found["laws"]][3] == "sample 2 rows"
    assert 0 <= found["laws"][0]["auroc"]["mean"] <= 1


def test_the_comparison_is_at_most_100_columns_wide(cli: Callable[..., Any]) -> None:
    cli("posterior", "run", "--path", "run", "-e", "5", "-b", "100", "--samples", "0")
    text = cli("posterior", "evaluate", "run", "--samples", "30", "--ood", "photos").stdout
    assert "SWAG all 65" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "…" not in text


def test_exported_and_compressed_laws_are_evaluated_alone(cli: Callable[..., Any], tmp_path: Path) -> None:
    cli("posterior", "run", "--path", "run", *SHORT)
    whole = json.loads(cli("posterior", "export", "run", "-o", "whole.safetensors", "--dtype", "bf16", "--json").stdout)
    few = json.loads(cli("posterior", "compress", "run", "--rank", "2", "-o", "few.safetensors", "--json").stdout)
    assert (whole["rows"], few["rows"], few["of_rows"]) == (5, 2, 5)
    assert whole["bytes"] == (tmp_path / "whole.safetensors").stat().st_size
    law = recorded(tmp_path / "run").gaussian()
    kept = Gaussian.load(tmp_path / "few.safetensors")
    expected = float(kept.variance().double().sum() / law.variance().double().sum())
    assert few["share_of_variance"] == pytest.approx(expected, rel=1e-5)
    arguments = ("--model", "mlp", "--data", "digits", "--samples", "2", "--json")
    found = json.loads(cli("posterior", "evaluate", "few.safetensors", *arguments).stdout)
    assert [law["role"] for law in found["laws"]] == ["mean", "all"]
    assert cli("posterior", "evaluate", "few.safetensors").exit_code == 2


def test_rows_without_a_run_can_be_exported_not_evaluated(cli: Callable[..., Any], tmp_path: Path) -> None:
    moments = Moments(Layout.of(torch.nn.Linear(3, 2)), rows=RowLog(tmp_path / "log"))
    for number in range(4):
        moments.update(torch.arange(8.0) * number)
    moments.close()
    assert "export" in cli("posterior", "evaluate", "log").stderr
    assert json.loads(cli("posterior", "export", "log", "-o", "law.safetensors", "--json").stdout)["rows"] == 4
    result = cli("posterior", "export", "log", "-o", "law.safetensors", "--dtype", "bfp8")
    assert "fp32, bf16 or fp16" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("cli")
def test_ctrl_c_says_how_to_go_on_and_the_run_does(tmp_path: Path) -> None:
    def command(path: str) -> list[str]:
        arguments = ["run", "--path", path, "-e", "60", "-b", "20", "--samples", "0", "--format", "bfp8"]
        return [sys.executable, "-m", "weightbank", "posterior", *arguments]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums depend on the number of threads, so all have one
    subprocess.run(command("whole"), check=True, env=environment, stdout=subprocess.DEVNULL)
    with subprocess.Popen(command("parts"), env=environment, stdout=-1, stderr=-1, text=True) as child:
        while not (tmp_path / "parts" / "checkpoint.safetensors").exists():
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate()
    assert child.returncode == 130
    assert errors == "stopped; go on with: weightbank posterior resume parts\n"
    again = [sys.executable, "-m", "weightbank", "posterior", "resume", "parts", "--samples", "0"]
    subprocess.run(again, check=True, env=environment, stdout=subprocess.DEVNULL)
    whole, parts = recorded(tmp_path / "whole"), recorded(tmp_path / "parts")
    assert whole.rows is not None
    assert parts.rows is not None
    assert whole.rows.journal.crcs.tolist() == parts.rows.journal.crcs.tolist()
    assert torch.equal(whole.mean(), parts.mean())

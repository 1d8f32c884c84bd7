import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from weightbank.cli.console import Commands
from weightbank.cli.report import report
from weightbank.report.results import KINDS, load_result

SCHEMA = Path(__file__).parents[2] / "docs" / "results.schema.json"

RUNS = """
posterior run    | posterior run --path run -e 1 --samples 2
posterior plan   | posterior plan mlp --iterates 10
posterior plan --rule paper | posterior plan --rule paper
posterior info   | posterior info run
posterior evaluate | posterior evaluate run --samples 2
posterior export | posterior export run -o law.safetensors
cim curvature    | cim curvature mlp -e 2 -o net.safetensors
cim rank         | cim rank net.safetensors
cim sweep        | cim sweep net.safetensors --sigma 0.5 --method cells --budget 0 --budget 0.1 --chips 4 -o sweep
cim plan         | cim plan net.safetensors --sigma 0.3 --max-drop 0.5 --passes 2 -o plan.safetensors
cim evaluate     | cim evaluate plan.safetensors net.safetensors --chips 3
cim run          | cim run --train-epoch 1 --noise-epoch 2
train            | train --epochs 2 --out trained
pages create     | pages create pool.safetensors -c 7000
pages add        | pages add pool.safetensors mlp -e 1
pages tune       | pages tune pool.safetensors --steps 4 --tolerance 1
pages convert    | pages convert pool.safetensors --dtype bfp8 --steps 4 -o small.safetensors
pages evaluate   | pages evaluate pool.safetensors
pages list       | pages list pool.safetensors
pages plot       | pages plot pool.safetensors -o pool.svg
pages run        | pages run memory
pages remove     | pages remove pool.safetensors mlp
inspect          | inspect small_cnn
inspect          | inspect run
inspect          | inspect law.safetensors
inspect          | inspect trained/average.safetensors
inspect          | inspect pool.safetensors
"""
WITHOUT = {"posterior plan --rule paper", "posterior info", "posterior export", "cim curvature"}
WITHOUT |= {"pages create", "pages add", "pages remove", "inspect run", "inspect pool.safetensors"}
"""Commands whose numbers need no figure."""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `weightbank report ...` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(cls=Commands)
    app.command()(report)
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["report", *arguments])


def test_the_schema_names_every_kind_of_result() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    described = {kind["title"]: kind for kind in schema["anyOf"]}
    assert len(described) == len(schema["anyOf"])
    for kind in KINDS:
        own = described.pop(f"weightbank {kind.command}")
        assert own["description"] == kind.see
        assert kind.keys <= set(own["required"])
    assert set(described) == {"weightbank tour", "weightbank report"}  # nothing to make a page of


def test_the_schema_refuses_what_no_command_prints(validator: Callable[[str], Any]) -> None:
    rows = {"rule": "paper", "epochs": {"model_2fc": {"1gb": 1}}}
    removed = validator("pages remove")
    assert removed.is_valid({"removed": "a", "left": ["b"]})
    assert not removed.is_valid({"removed": "a", "left": "b"})
    assert not removed.is_valid({"removed": "a"})
    assert not validator("cim plan").is_valid(rows)


@pytest.mark.slow
def test_the_output_of_every_command_is_known_and_drawn(
    cli: Callable[..., Any], made: Callable[..., Any], validator: Callable[[str], Any]
) -> None:
    names: list[str] = []
    drawn = 0
    for line in RUNS.strip().splitlines():
        command, _, arguments = (part.strip() for part in line.partition("|"))
        found = cli(*arguments.split(), "--json")
        assert found.stdout, found.stderr
        path = Path(f"{len(names)}.json")
        path.write_text(found.stdout)
        names.append(str(path))
        result = load_result(path)
        assert result.kind.command == command
        validator(command).validate(result.document)
        drawn += command not in WITHOUT and arguments not in WITHOUT
        alone = made(str(path), "--json")
        assert alone.exit_code == 0, (command, alone.stderr)
        assert json.loads(alone.stdout)["figures"] == (command not in WITHOUT and arguments not in WITHOUT), arguments
    assert load_result("sweep/sweep.json").kind.command == "cim sweep"
    done = made(*names, "-o", "all.html", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    validator("report").validate(facts)
    assert facts["sections"] == len(names)
    assert facts["figures"] == drawn
    assert facts["bytes"] == Path("all.html").stat().st_size


def test_experiments_on_pools_keep_their_own_figure(made: Callable[..., Any]) -> None:
    rows = [{"networks": n, "network": "a$b$", "page_size": 1, "tuned": 0.9 - n / 100} for n in (2, 3)]
    Path("run.json").write_text(json.dumps({"experiment": "networks", "networks": ["a"], "rows": rows}))
    assert json.loads(made("run.json", "--json").stdout)["figures"] == 1
    assert "test accuracy %" in Path("report.html").read_text()
    Path("run.json").write_text(json.dumps({"experiment": "networks", "networks": ["a"], "rows": rows * 600}))
    done = made("run.json", "--json")
    assert json.loads(done.stdout)["figures"] == 0
    assert "at most 1,000 are drawn" in done.stderr


def test_a_page_without_matplotlib_is_said_to_have_no_figures(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"iterates": 1, "disk": {"rows": 5}, "working": {}, "memory": {}, "shortage": {}}
    Path("plan.json").write_text(json.dumps(document))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = made("plan.json")
    assert done.exit_code == 0
    assert "pip install weightbank[report]" in done.stderr
    assert "<svg" not in Path("report.html").read_text()


def test_a_foreign_file_is_one_line_of_error_and_no_page(made: Callable[..., Any]) -> None:
    Path("package.json").write_text('{"name": "left-pad"}')
    done = made("package.json")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: package.json: not the --json output of a command")
    assert not Path("report.html").exists()

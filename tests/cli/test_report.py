import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from weightbank.cli.console import Commands
from weightbank.cli.report import report
from weightbank.report.page import section_of
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
pages evaluate   | pages evaluate pool.safetensors
pages list       | pages list pool.safetensors
pages remove     | pages remove pool.safetensors mlp
"""
WITHOUT = {"posterior plan --rule paper", "posterior info", "posterior export", "cim curvature"}
WITHOUT |= {"pages create", "pages add", "pages remove"}
"""Kinds whose numbers need no figure."""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `weightbank report ...` in an empty directory."""
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(cls=Commands)
    app.command()(report)
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["report", *arguments])


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is of the schema's type and has what it requires; what the schema does not name is free."""
    kind = schema.get("type")
    types = {"string": str, "boolean": bool, "number": (int, float), "object": dict, "array": list, None: object}
    if not isinstance(value, types[kind]) or (kind == "number" and isinstance(value, bool)):
        return False
    if isinstance(value, dict) and not set(schema.get("required", [])) <= set(value):
        return False
    return all(fits(value[name], part) for name, part in schema.get("properties", {}).items() if name in value)


def test_the_schema_names_every_kind_of_result() -> None:
    kinds = json.loads(SCHEMA.read_text())["anyOf"]
    described = [(kind["title"], set(kind["required"]), kind["description"]) for kind in kinds]
    assert described == [(f"weightbank {kind.command}", set(kind.keys), kind.see) for kind in KINDS]
    plan = next(kind for kind in kinds if kind["title"] == "weightbank posterior plan")
    good = {"iterates": 3, "disk": {}, "working": {}, "memory": {}, "shortage": {}}
    assert fits(good, plan)
    assert not fits({**good, "iterates": "3"}, plan)
    assert not fits({"iterates": 3}, plan)


@pytest.mark.slow
def test_the_output_of_every_command_is_known_and_drawn(cli: Callable[..., Any], made: Callable[..., Any]) -> None:
    names, schemas = [], json.loads(SCHEMA.read_text())["anyOf"]
    for line in RUNS.strip().splitlines():
        command, _, arguments = (part.strip() for part in line.partition("|"))
        found = cli(*arguments.split(), "--json")
        assert found.stdout, found.stderr
        path = Path(f"{len(names)}.json")
        path.write_text(found.stdout)
        names.append(str(path))
        result = load_result(path)
        assert result.kind.command == command
        schema = next(kind for kind in schemas if kind["title"] == f"weightbank {command}")
        assert fits(result.document, schema), command
        section = section_of(result)
        assert section.notes == (), command
        assert len(section.pictures) == (command not in WITHOUT), command
    assert load_result("sweep/sweep.json").kind.command == "cim sweep"
    done = made(*names, "-o", "all.html", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["sections"] == len(names)
    assert facts["figures"] == len(names) - len(WITHOUT)
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

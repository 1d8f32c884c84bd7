import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from weightbank.cli import app


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `weightbank ...` in an empty directory; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def validator() -> Callable[[str], Draft202012Validator]:
    """Of the documents of one command, by the documented schema."""
    schema = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())

    def of(command: str) -> Draft202012Validator:
        own = next(kind for kind in schema["anyOf"] if kind["title"] == f"weightbank {command}")
        return Draft202012Validator({**own, "$defs": schema["$defs"]})

    return of

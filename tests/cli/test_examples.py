import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.main import get_command

from weightbank.cli import app

FIRST = ("run", "export", "compress")  # others need what these leave
LAST = ("report",)  # needs what others leave
SLOW = ("tour",)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def examples(command: Any) -> list[str]:
    return [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("weightbank ")]


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_help_shows_an_example_of_the_command(cli: Callable[..., Any], path: tuple[str, ...]) -> None:
    found = examples(dict(commands())[path])
    assert found
    assert all(example.startswith(" ".join(("weightbank", *path))) for example in found)
    shown = re.sub(r"\s+", " ", cli(*path, "--help").stdout)
    assert all(example in shown for example in found)


@pytest.mark.slow
def test_every_example_of_the_help_runs(cli: Callable[..., Any]) -> None:
    listed = [(path, example) for path, command in commands() for example in examples(command)]
    listed.sort(
        key=lambda item: FIRST.index(item[0][-1]) if item[0][-1] in FIRST else len(FIRST) + (item[0][-1] in LAST)
    )
    for path, example in listed:
        if path[-1] not in SLOW:
            result = cli(*shlex.split(example)[1:])
            assert result.exit_code == 0, f"{example}: {result.stderr}"
            assert result.stdout


@pytest.mark.slow
def test_the_module_can_be_run() -> None:
    result = subprocess.run([sys.executable, "-m", "weightbank", "--help"], capture_output=True, text=True, check=True)
    assert "posterior" in result.stdout

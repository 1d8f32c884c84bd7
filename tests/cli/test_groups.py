from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from weightbank.cli.groups import grouped

Size = Annotated[int, typer.Option("-s", "--size", min=1, help="How large.")]


@dataclass(frozen=True)
class Box:
    size: Size = 3
    colour: str = "red"


def commands() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @grouped
    def pack(*, what: Annotated[str, typer.Argument()], box: Box, twice: bool = False) -> None:
        """Pack something."""
        typer.echo(f"{what} {box} {twice}")

    return app


def test_a_group_gives_its_fields_as_options_and_comes_as_one_value() -> None:
    result = CliRunner().invoke(commands(), ["tea", "-s", "7", "--twice"])
    assert result.stdout == "tea Box(size=7, colour='red') True\n"
    assert CliRunner().invoke(commands(), ["tea"]).stdout == "tea Box(size=3, colour='red') False\n"


def test_options_of_a_group_are_checked_and_explained_as_others_are() -> None:
    assert CliRunner().invoke(commands(), ["tea", "--size", "0"]).exit_code == 2
    text = CliRunner().invoke(commands(), ["--help"]).stdout
    assert "How large." in text
    assert "Pack something." in text
    assert "--box" not in text

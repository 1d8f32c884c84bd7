"""The command line: one file per command group."""

import typer

app = typer.Typer(name="weightbank", no_args_is_help=True)

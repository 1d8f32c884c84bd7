"""The command line: one file per command group; nothing heavy is imported before a command needs it."""

import typer

from weightbank.cli import cim, pages, posterior
from weightbank.cli import inspect as inspect_
from weightbank.cli import report as report_
from weightbank.cli.console import Commands
from weightbank.cli.tour import tour
from weightbank.cli.train import EXAMPLES, train

app = typer.Typer(
    name="weightbank",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Fit more neural networks into less, and less perfect, memory, and know what it costs.",
)
app.add_typer(posterior.app, name="posterior")
app.add_typer(cim.app, name="cim")
app.add_typer(pages.app, name="pages")
app.command(epilog=EXAMPLES)(train)
app.command(epilog="Example:\n\nweightbank tour --seed 1")(tour)
app.command(epilog=report_.EXAMPLES)(report_.report)
app.command(epilog=inspect_.EXAMPLES)(inspect_.inspect)

"""`weightbank tour`: a posterior larger than its network's memory, recorded twice and compared, in seconds."""

from pathlib import Path
from typing import Annotated

import typer

from weightbank.cli.console import Json

OWN_MODEL = """\
With your own model, as task = wb.Task("name", model, loss, train, test):
  moments = wb.Moments(task.layout, rows=wb.RowLog("posterior", format="bfp8"))
  for epoch in wb.epochs(task, optimizer, count=30, each_step=moments.update): pass
  print(wb.evaluate(task, moments.gaussian(), samples=30))"""


def tour(
    directory: Annotated[
        Path | None, typer.Option(help="Keep the posteriors here; otherwise they are removed at the end.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order of the data and the wrong labels.")] = 0,
    json: Json = False,
) -> None:
    """Train a small network, record every iterate on disk, and see what more rows, and fewer bits, are worth.

    300 handwritten digits, 60 of them with a random label, train a network of three layers; from epoch 40 on, the
    weights after every minibatch go into a posterior of float32 rows and into one of 8-bit blocks. Then the laws made
    of them predict the other 1,497 digits, and tell them from patches of photographs. Takes a quarter of a minute.
    """
    from weightbank.cli.touring import show_tour

    show_tour(directory, seed, json=json)

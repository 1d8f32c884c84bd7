"""`weightbank tour`: all jobs on small networks of digits, in half a minute, with what each saved and cost."""

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
    page: Annotated[
        Path | None, typer.Option(help="Write a page of all numbers and figures here, and the .json beside it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order of the data and the wrong labels.")] = 0,
    json: Json = False,
) -> None:
    """Walk through all jobs on small networks: a posterior, a noisy device, 8 bits, one memory for three networks.

    300 handwritten digits, 60 of them with a random label, train a network of three layers; from epoch 40 on, the
    weights after every minibatch go into a posterior of float32 rows and into one of 8-bit blocks. Then the laws made
    of them predict the other 1,497 digits, and tell them from patches of photographs. Then three networks of all digits
    are put on a noisy device, trained in 8 bits, and packed into one memory; and the expected rise of the loss stands
    beside the measured one. Takes half a minute.
    """
    from weightbank.cli.touring import show_tour

    show_tour(directory, page, seed, json=json)

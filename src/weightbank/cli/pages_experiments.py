"""`weightbank pages run`: the published evaluation of sharing a memory, on any table of networks."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from weightbank.cli.console import Json

Number = TypeVar("Number", int, float)


class Experiment(StrEnum):
    """What is varied or measured."""

    networks = "networks"
    page_size = "page-size"
    penalty = "penalty"
    order = "order"
    formats = "formats"
    convergence = "convergence"
    matching = "matching"
    switching = "switching"
    memory = "memory"
    sharing = "sharing"
    importance = "importance"


class Placement(StrEnum):
    """How networks are placed."""

    extents = "extents"
    pages = "pages"
    published = "published"


class Method(StrEnum):
    """How networks are tuned."""

    tied = "tied"
    joint = "joint"
    sequential = "sequential"


EPILOG = """Examples:

weightbank pages run networks --first 3 --counts 2,3 --steps 30

weightbank pages run switching --first 3 --csv switching.csv --figure switching.svg"""


def run_command(
    experiment: Annotated[Experiment, typer.Argument(help="What is varied or measured.")],
    networks: Annotated[
        str,
        typer.Option(help="A TOML file with a line for each network, or digits: ten small ones, no files needed."),
    ] = "digits",
    first: Annotated[int | None, typer.Option(min=1, help="Take the first N networks only.")] = None,
    counts: Annotated[str, typer.Option(help="Of networks and memory: how many networks.")] = "3,5,7,9,10",
    sizes: Annotated[str, typer.Option(help="Of page-size and matching: weights per page.")] = "10,100,1000,10000",
    penalties: Annotated[str, typer.Option(help="Of penalty: its weights λ.")] = "0.1,1,10,100",
    formats: Annotated[
        str, typer.Option(help="Of formats: what the tuned pool is converted to.")
    ] = "bf16,bfp8,bfp6,bfp4",
    capacity: Annotated[
        str | None, typer.Option(help="Of the pool, such as 280kB; by default the largest network fits in.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="What a weight is stored as: fp32, bf16, bfp8 ...")] = "fp32",
    placement: Annotated[Placement, typer.Option(help="How networks are placed.")] = Placement.extents,
    page_size: Annotated[int, typer.Option(min=1, help="Weights per page, for placements in pages.")] = 100,
    method: Annotated[Method, typer.Option(help="Tie the weights, or the published penalty.")] = Method.tied,
    steps: Annotated[int, typer.Option(min=1, help="Of tuning; each with a minibatch of every network.")] = 1000,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between two checks; a tenth of all.")] = None,
    hold: Annotated[
        float | None,
        typer.Option(min=0, help="How strongly networks without data are held (100), or λ of the penalty method (10)."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of the published method: how often the turn goes round.")] = 20,
    lr: Annotated[float, typer.Option(help="The first learning rate of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of places, the order of data, and what is held back.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where weights trained here are kept, and found again.")] = Path(
        "networks"
    ),
    csv: Annotated[Path | None, typer.Option(help="Write the rows here, each as soon as it is known.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw them here, .svg or .png (weightbank[report]).")] = None,
    json: Json = False,
) -> None:
    """Repeat an experiment of the published evaluation of shared memory on networks of your own.

    networks: accuracies of the first 3, 5, 7, 9, 10 networks in one memory. page-size, penalty, order (sequential,
    joint, tied), convergence: what else they depend on. formats: the tuned pool in fewer bits, rounded to nearest, and
    by example. matching: time and quality of placements. switching: the first time (warm-up) apart from the steady
    state. memory: bytes, computed and really held. sharing, importance: which networks are in each other's way, and how
    few weights matter.

    A table has a line for each network, paths relative to it; one without data is held at its weights:

      spoken = { model = "pages_spoken", data = "audio:recordings" }

      obs = { model = "pages_obs", weights = "pages/obs.npz", importance = "flat_fisher" }
    """
    from weightbank.cli.pages_running import Wanted, run
    from weightbank.paging.experiments import Setup

    size = int(capacity) if capacity is not None and capacity.isdigit() else capacity
    setup = Setup(
        capacity=size,
        dtype=dtype,
        placement=placement.value,
        page_size=page_size,
        steps=steps,
        lr=lr,
        method=method.value,
        hold=hold,
        rounds=rounds,
        every=every,
        seed=seed,
    )
    wanted = Wanted(_numbers(counts, int), _numbers(sizes, int), _numbers(penalties, float), formats.split(","))
    run(experiment.value, networks, setup, wanted, first=first, cache=cache, csv=csv, figure=figure, json=json)


def _numbers(text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not min(numbers) > 0:
        raise typer.BadParameter(f"{text!r}; wanted positive numbers with commas between them")
    return numbers

"""`weightbank pages`: many networks in one small memory, kept in one file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from weightbank.cli.console import Commands, Json
from weightbank.cli.pages_experiments import EPILOG, Method, Placement, run_command

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Many networks in one small memory: create a pool, add networks, tune them together, serve, measure.",
)


NETWORK_HELP = (
    "mlp, small_cnn (both fit any data), another model of the zoo, FILE:FUNCTION of your own (returns a model or a "
    "weightbank.Task), or a .safetensors file of `cim curvature`."
)
File = Annotated[Path, typer.Argument(metavar="POOL", help="The .safetensors file of the pool.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME=FILE:FUNCTION", help="Code of a tenant that was added from code; repeat it."),
]
Seed = Annotated[int, typer.Option(help="Of first weights, order of the data, and places.")]


@app.command("create", epilog='Example:\n\nweightbank pages create pool.safetensors --capacity "28 kB"')
def create_command(
    file: File,
    capacity: Annotated[
        str, typer.Option("-c", "--capacity", help="Bytes such as '280 kB', or a plain number of weights.")
    ],
    dtype: Annotated[str, typer.Option(help="What a weight is stored as: fp32, bf16, bfp8 or bfp4.")] = "fp32",
    reserve: Annotated[int, typer.Option(min=0, help="Positions that only unshared tensors may take.")] = 0,
    json: Json = False,
) -> None:
    """Make an empty pool. Refuses a file that is there already."""
    from weightbank.cli.pages_pools import create

    create(file, int(capacity) if capacity.isdecimal() else capacity, dtype=dtype, reserve=reserve, json=json)


@app.command(
    "add",
    epilog="Examples:\n\nweightbank pages add pool.safetensors mlp --data digits --epochs 5\n\n"
    "weightbank pages add pool.safetensors mlp --name second --seed 1 --epochs 5 --placement pages",
)
def add_command(
    file: File,
    network: Annotated[str, typer.Argument(metavar="NETWORK", help=NETWORK_HELP)] = "mlp",
    name: Annotated[str | None, typer.Option(help="Of the tenant; by default the network's.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="digits (if none is named), mnist:FOLDER, parquet:FOLDER ...")
    ] = None,
    pretrained: Annotated[Path | None, typer.Option(help="Weights: .safetensors, or a published state_dict.")] = None,
    epochs: Annotated[
        int | None, typer.Option("-e", "--epochs", min=0, help="Of training, if no weights are given. [20]")
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="Of Adam, in that training.")] = 3e-3,
    placement: Annotated[Placement, typer.Option(help="How its weights are placed.")] = Placement.extents,
    page_size: Annotated[int, typer.Option(min=1, help="Weights per page, for placements in pages.")] = 128,
    exclusive: Annotated[
        str,
        typer.Option(
            help="Not shared: none, vectors (biases, norms), or a part as 0.02, in the most important tensors."
        ),
    ] = "none",
    images: Annotated[int, typer.Option(min=1, help="Training examples to measure importance on.")] = 2_000,
    share: Annotated[float, typer.Option(help="How much the network counts among the others.")] = 1.0,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Put a network into the pool, where sharing costs least by its Fisher information.

    Until `pages tune` has run, sharing costs accuracy, of the newcomer and of those it shares with.
    """
    from weightbank.cli.cim_network import Wanted
    from weightbank.cli.pages_pools import add

    wanted = Wanted(network, data, pretrained, epochs, lr, seed)
    options = {"placement": placement.value, "page_size": page_size, "share": share}
    add(file, wanted, name=name, images=images, exclusive=exclusive, options=options, json=json)


@app.command(
    "tune",
    epilog="Examples:\n\nweightbank pages tune pool.safetensors --steps 100\n\n"
    "weightbank pages tune pool.safetensors --steps 100 --only mlp --checkpoint tune.state",
)
def tune_command(
    file: File,
    steps: Annotated[int, typer.Option(min=1, help="Each with a minibatch of every network.")] = 1000,
    lr: Annotated[float, typer.Option("--lr", help="Adam's first rate; it falls to zero.")] = 1e-3,
    method: Annotated[Method, typer.Option(help="Tie the weights, or the published penalty.")] = Method.tied,
    tolerance: Annotated[float, typer.Option(help="Accuracy that a network may lose: 0.01 is a point.")] = 0.01,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Tune these; others are held by a penalty. Repeat it.")
    ] = None,
    hold: Annotated[
        float | None, typer.Option(min=0.0, help="The weight of that penalty: 100, or 10 of the published one.")
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between two checks; a tenth of all.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Kept at each check; a stopped run goes on from it.")] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write log.jsonl there, a line a check, and TensorBoard events.")
    ] = None,
    models: Models = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train all networks of the pool together, and keep the result if it harms none of them.

    Judged on training examples held back, never on test data. Exits with code 1, the file as it was, if a network lost
    more than the tolerance.
    """
    from weightbank.cli.pages_pools import tune_file

    settings: dict[str, Any] = {"steps": steps, "lr": lr, "method": method.value, "tolerance": tolerance, "hold": hold}
    settings |= {"every": every, "checkpoint": checkpoint, "seed": seed}
    if not tune_file(file, only, models, settings, log=log, json=json):
        raise typer.Exit(1)


@app.command(
    "convert",
    epilog="Examples:\n\nweightbank pages convert pool.safetensors --dtype bfp8 --steps 40\n\n"
    "weightbank pages convert pool.safetensors --dtype bf16 --nearest -o half.safetensors",
)
def convert_command(
    file: File,
    dtype: Annotated[str, typer.Option(help="What a weight is to be stored as: fp32, bf16, bfp8, bfp4 ...")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; by default the pool's own.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Of rounding by example; 0 rounds to nearest and measures it.")
    ] = 200,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Round to nearest; read no data, measure nothing.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="Accuracy that a network may lose: 0.01 is a point.")] = 0.01,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Look at these; others are held by a penalty. Repeat it.")
    ] = None,
    hold: Annotated[float, typer.Option(min=0.0, help="The weight of that penalty.")] = 100.0,
    models: Models = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Store the pool in another format, rounded so that its networks go on predicting what they predicted.

    Judged on training examples held back, never on test data. Exits with code 1, the file as it was, if a network lost
    more than the tolerance.
    """
    from weightbank.cli.pages_pools import convert_file

    settings: dict[str, Any] = {"steps": steps, "tolerance": tolerance, "hold": hold, "seed": seed}
    if not convert_file(file, dtype, output, None if nearest else only or [], models, settings, json=json):
        raise typer.Exit(1)


@app.command("evaluate", epilog="Example:\n\nweightbank pages evaluate pool.safetensors")
def evaluate_command(
    file: File,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of one tenant; all by default.")] = None,
    models: Models = None,
    json: Json = False,
) -> None:
    """Measure the networks on their test data, with the weights as the pool holds them."""
    from weightbank.cli.pages_pools import evaluate_file

    evaluate_file(file, name, models, json=json)


@app.command("list", epilog="Example:\n\nweightbank pages list pool.safetensors")
def list_command(file: File, json: Json = False) -> None:
    """Say who is in the pool, who shares how much, and where the bytes are."""
    from weightbank.cli.pages_pools import show

    show(file, json=json)


@app.command(
    "materialise", epilog="Example:\n\nweightbank pages materialise pool.safetensors mlp -o network.safetensors"
)
def materialise_command(
    file: File,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the tenant.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    json: Json = False,
) -> None:
    """Write a network's weights as an ordinary state_dict, as the pool holds them: networks may leave."""
    from weightbank.cli.pages_pools import materialise

    materialise(file, name, output, json=json)


@app.command("plot", epilog="Example:\n\nweightbank pages plot pool.safetensors -o pool.svg")
def plot_command(
    file: File,
    output: Annotated[Path, typer.Option("-o", "--output", help="A figure, .svg or .png (weightbank[report]).")],
    bins: Annotated[int, typer.Option(min=2, help="Parts of the pool, from left to right.")] = 200,
    json: Json = False,
) -> None:
    """Draw where each network stands in the pool, how important its weights are there, and how many share a place."""
    from weightbank.cli.pages_plot import plot

    plot(file, output, bins, json=json)


@app.command("remove", epilog="Example:\n\nweightbank pages remove pool.safetensors mlp")
def remove_command(
    file: File, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the tenant.")], json: Json = False
) -> None:
    """Take a network out; all others keep exactly the weights they had."""
    from weightbank.cli.pages_pools import remove

    remove(file, name, json=json)


app.command("run", epilog=EPILOG)(run_command)

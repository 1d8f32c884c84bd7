"""`weightbank posterior`: plan, record, resume, look at, evaluate and ship posteriors larger than memory."""

import math
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from weightbank.cli.console import Commands, Json, note, show_facts, show_json

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="SWAG posteriors whose rows live on a disk, larger than memory: plan, record, resume, evaluate, export.",
)

KEEP_HELP = "Rows to keep: all, window:20 (the newest 20) or sketch:50 (50 that stand for all)."
FORMAT_HELP = "How a row is stored: fp32, bf16, fp16, bfp8, bfp6, bfp5, bfp4 (blocks), mxfp8_e4m3, mxfp4_e2m1 ..."


class Rule(StrEnum):
    """Whose count of bytes."""

    real = "real"
    paper = "paper"


class Medium(StrEnum):
    """Where rows are kept."""

    file = "file"
    memory = "memory"
    dax = "dax"


class Durability(StrEnum):
    """What a row outlives."""

    process = "process"
    commit = "commit"
    none = "none"


class Schedule(StrEnum):
    """How the learning rate goes."""

    constant = "constant"
    swag = "swag"


class Covariance(StrEnum):
    """Which covariance of the iterates."""

    swag = "swag"
    diagonal = "diagonal"
    sample = "sample"


Keep = Annotated[str, typer.Option(help=KEEP_HELP)]
Format = Annotated[str, typer.Option(help=FORMAT_HELP)]
Samples = Annotated[int, typer.Option(min=1, help="Draws per law.")]
Salvage = Annotated[bool, typer.Option("--salvage", help="Of damaged rows, take those before the first bad one.")]
Place = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a run, or of a plain row log.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")]


@app.command(
    "plan",
    epilog="Examples:\n\nweightbank posterior plan model_2conv2fc --epochs 5\n\n"
    "weightbank posterior plan 1M --keep window:20 --format bf16 --iterates 100000\n\n"
    "weightbank posterior plan --rule paper",
)
def plan_command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL|N", help="A model by name, or 2797010, 110M.")] = None,
    iterates: Annotated[int | None, typer.Option(min=1, help="Iterates to record.")] = None,
    epochs: Annotated[int | None, typer.Option("-e", "--epochs", min=1, help="Epochs instead of --iterates.")] = None,
    batch_size: Annotated[int, typer.Option("-b", "--batch-size", "--batch_size", min=1, help="For --epochs.")] = 100,
    examples: Annotated[int, typer.Option(min=1, help="Training examples, for --epochs.")] = 60_000,
    every: Annotated[
        int,
        typer.Option("-r", "--every", "--bpost", min=1, help="Record every N-th minibatch of an epoch, for --epochs."),
    ] = 1,
    keep: Keep = "all",
    format: Format = "fp32",
    path: Annotated[Path, typer.Option("-p", "--path", help="Where the rows will go; only looked at.")] = Path(),
    budget: Annotated[str | None, typer.Option(help="Disk that may be used, such as 100GB.")] = None,
    ram: Annotated[str | None, typer.Option(help="Memory that may be used, such as 4GB.")] = None,
    samples: Samples = 30,
    rule: Annotated[Rule, typer.Option(help="Bytes as they are, or by the published rule 12n(k+3)+12.")] = Rule.real,
    measure: Annotated[bool, typer.Option(help="Time a scratch file there, for about a second.")] = True,
    json: Json = False,
) -> None:
    """Say what a posterior will take before it is recorded: bytes on disk, memory, time.

    Without --iterates and --epochs: how many iterates fit into --budget, or into the free disk. Exits with code 1 if
    something is missing. `--rule paper` reproduces the published table of epochs (without a model, all of it), whose
    rule counts three times the bytes of float32 rows.
    """
    from weightbank.cli.planning import show_paper, show_plan
    from weightbank.sizes import parse_bytes

    if epochs is not None and iterates is None:
        iterates = epochs * (-(-examples // batch_size) // every)
    limit = None if budget is None else parse_bytes(budget)
    if rule is Rule.paper:
        show_paper(model, iterates, limit, json=json)
        return
    if model is None:
        raise typer.BadParameter("name a model or a number of weights (only --rule paper can do without)")
    memory = None if ram is None else parse_bytes(ram)
    fits = show_plan(
        model, iterates, format, keep, path, samples=samples, budget=limit, ram=memory, measure=measure, json=json
    )
    if not fits:
        raise typer.Exit(1)


@app.command(
    "run",
    epilog="Examples:\n\nweightbank posterior run --path digits-run --epochs 3 --skip-epochs 1\n\n"
    "weightbank posterior run mlp --path small-run -e 2 -r 2 --format bfp8 --keep window:10 --samples 5",
)
def run_command(
    model: Annotated[
        str,
        typer.Argument(
            help="mlp, small_cnn (both fit any data), another model of the zoo such as model_2fc, or FILE:FUNCTION of "
            "your own (returns a model or a weightbank.Task)."
        ),
    ] = "mlp",
    data: Annotated[str, typer.Option(help="digits, mnist:FOLDER, idx:FOLDER, parquet:FOLDER or hub:NAME.")] = "digits",
    path: Annotated[
        Path,
        typer.Option("-p", "--path", "-s", "--posterior_path", help="The directory of this run; rows in DIR/rows."),
    ] = Path("posterior"),
    epochs: Annotated[int, typer.Option("-e", "--epochs", min=1, help="Epochs, skipped ones included.")] = 10,
    batch_size: Annotated[
        int, typer.Option("-b", "--batch_size", "--batch-size", min=1, help="Examples a step.")
    ] = 100,
    learning_rate: Annotated[
        float,
        typer.Option("-n", "--learning_rate", "--lr", help="Published: 0.0001, at which the networks stay untrained."),
    ] = 0.05,
    momentum: Annotated[float, typer.Option("-m", "--momentum", min=0.0, max=1.0, help="Published: 0.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Published: 0.")] = 0.0,
    every: Annotated[
        int, typer.Option("-r", "--bpost", "--every", min=1, help="Record every N-th minibatch of an epoch.")
    ] = 1,
    window: Annotated[
        int | None, typer.Option("-K", "--posterior_sample_size", min=1, help="The same as --keep window:K.")
    ] = None,
    keep: Keep = "all",
    format: Format = "fp32",
    medium: Annotated[Medium, typer.Option(help="Rows in files, in memory (gone afterwards), or on a DAX node.")] = (
        Medium.file
    ),
    node: Annotated[
        str | None,
        typer.Option("-f", "--node", "--shelf_file", help="The device-DAX node of --medium dax: /dev/dax0.0."),
    ] = None,
    erase: Annotated[bool, typer.Option("--erase", help="Start with an empty device, whatever is on it.")] = False,
    cuda: Annotated[int, typer.Option("-c", "--cuda", help="The number of a GPU; -1 is the CPU.")] = -1,
    device: Annotated[str | None, typer.Option(help="A device by its torch name, instead of --cuda.")] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "-csv", "--results_filepath", "--csv", help="Times and metrics, row by row; by default DIR/timings.csv."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the data.")] = 0,
    durability: Annotated[
        Durability, typer.Option(help="A recorded row outlives the process, or a power loss (commit), or nothing.")
    ] = Durability.process,
    skip_epochs: Annotated[int, typer.Option(min=0, help="Epochs trained before recording starts.")] = 0,
    schedule: Annotated[
        Schedule, typer.Option(help="Of the learning rate; swag: high, then down to --swa-lr before recording starts.")
    ] = Schedule.constant,
    swa_lr: Annotated[
        float | None, typer.Option(help="The rate while recording, of --schedule swag; by default half of --lr.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Draws per law of the table at the end; 0 for no table.")] = 30,
    json: Json = False,
) -> None:
    """Train a network with SGD, record its iterates as a posterior, and compare what the laws made of them predict.

    Refuses before it starts if disk or memory are too small. A run that was stopped or killed goes on with the command
    resume, and ends with the same bits.
    """
    from weightbank.cli.runs import run_new
    from weightbank.cli.settings import Settings

    for rate, option in ((learning_rate, "--lr"), (1.0 if swa_lr is None else swa_lr, "--swa-lr")):
        if not 0 < rate < math.inf:
            raise typer.BadParameter(f"{option} {rate:g}: wanted a positive learning rate")
    if window is not None and keep != "all":
        raise typer.BadParameter("give -K or --keep, not both")
    if (medium is Medium.dax) != (node is not None):
        raise typer.BadParameter("--medium dax and --node /dev/dax0.0 go together")
    if schedule is Schedule.swag and skip_epochs < 1:
        raise typer.BadParameter("--schedule swag ends where recording starts; give --skip-epochs of 1 or more")
    kind, _, folder = data.partition(":")
    settings = Settings(
        model=model,
        data=f"{kind}:{Path(folder).absolute()}" if folder and kind != "hub" else data,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        every=every,
        keep=keep if window is None else f"window:{window}",
        format=format,
        medium=medium.value,
        node=node,
        device=device or ("cpu" if cuda < 0 else f"cuda:{cuda}"),
        csv=None if csv is None else str(csv.absolute()),
        seed=seed,
        durability=durability.value,
        skip_epochs=skip_epochs,
        schedule=schedule.value,
        swa_learning_rate=learning_rate / 2 if swa_lr is None else swa_lr,
    )
    resumable = medium is not Medium.memory
    _to_the_end(lambda: run_new(settings, path, samples=samples, erase=erase, json=json), path, resumable=resumable)


@app.command("resume", epilog="Example:\n\nweightbank posterior resume digits-run")
def resume_command(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a run.")],
    samples: Annotated[int, typer.Option(min=0, help="Draws per law of the table at the end; 0 for no table.")] = 30,
    json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed, from its last checkpoint; it ends with the same bits.

    Rows recorded after the checkpoint are checked as they come again. A finished run is only evaluated.
    """
    from weightbank.cli.runs import run_again

    _to_the_end(lambda: run_again(place, samples=samples, json=json), place, resumable=True)


@app.command("info", epilog="Example:\n\nweightbank posterior info digits-run --verify")
def info_command(
    place: Place,
    verify: Annotated[bool, typer.Option("--verify", help="Read every row and check it against its checksum.")] = False,
    salvage: Salvage = False,
    json: Json = False,
) -> None:
    """Say what a recorded posterior holds: rows, format, steps, bytes, and its mean and variance in figures.

    With --verify, exits with code 1 if rows are damaged.
    """
    from weightbank.cli.looking import describe_posterior

    document = describe_posterior(place, verify=verify, salvage=salvage)
    show_facts(document, json=json)
    if document.get("damaged"):
        raise typer.Exit(1)


@app.command(
    "evaluate",
    epilog="Examples:\n\nweightbank posterior evaluate digits-run --samples 10 --ood photos\n\n"
    "weightbank posterior evaluate digits.safetensors --model mlp --data digits",
)
def evaluate_command(
    place: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A run's directory, or an exported .safetensors.")],
    samples: Samples = 30,
    ood: Annotated[str | None, typer.Option(help="Foreign inputs: photos, or data such as mnist:FOLDER.")] = None,
    covariance: Annotated[Covariance, typer.Option(help="Of the law of all rows.")] = Covariance.swag,
    window: Annotated[int, typer.Option(min=2, help="Rows of the narrow laws.")] = 20,
    burn_in: Annotated[int, typer.Option(min=0, help="Iterates left out at the start.")] = 0,
    thin: Annotated[int, typer.Option(min=1, help="Take every N-th iterate.")] = 1,
    scale: Annotated[float | None, typer.Option(help="Of the covariance; by default 0.5, of a diagonal 1.")] = None,
    data: Annotated[str | None, typer.Option(help="Other data than the run's; needed for a file.")] = None,
    model: Annotated[str | None, typer.Option(help="The model of an exported file.")] = None,
    salvage: Salvage = False,
    json: Json = False,
) -> None:
    """Compare what the laws made of a run predict: last iterate, SWA, SWAG of several ranks, its snapshots.

    ± is one standard error over test examples; another training run is not in it.
    """
    from weightbank.cli.looking import evaluate_file, evaluate_run

    if place.is_file():
        if model is None or data is None:
            raise typer.BadParameter("an exported file needs --model and --data")
        rows = evaluate_file(place, model, data, samples=samples, ood=ood)
    else:
        options: dict[str, Any] = {"window": window, "burn_in": burn_in, "thin": thin, "scale": scale}
        options |= {"covariance": covariance.value, "samples": samples}
        rows = evaluate_run(place, data=data, ood=ood, salvage=salvage, **options)
    from weightbank.cli.tables import comparison, show_comparison

    if json:
        show_json(comparison(rows))
    else:
        show_comparison(rows)


@app.command(
    "compress", epilog="Example:\n\nweightbank posterior compress digits-run --rank 20 -o digits-20.safetensors"
)
def compress_command(
    place: Place,
    output: Output,
    rank: Annotated[int, typer.Option(min=1, help="Rows to keep.")] = 20,
    dtype: Annotated[str, typer.Option(help="Of the rows in the file: fp32, bf16 or fp16.")] = "fp32",
    salvage: Salvage = False,
    json: Json = False,
) -> None:
    """Write the best approximation of a posterior by a few rows to one .safetensors file.

    The rows are the leading eigenvectors, so what is lost in any direction is at most the next eigenvalue. Two passes
    over the rows; memory for `rank` vectors.
    """
    from weightbank.cli.looking import export

    show_facts(export(place, output, rank=rank, dtype=dtype, salvage=salvage), json=json)


@app.command("export", epilog="Example:\n\nweightbank posterior export digits-run -o digits.safetensors --dtype bf16")
def export_command(
    place: Place,
    output: Output,
    dtype: Annotated[str, typer.Option(help="Of the rows in the file: fp32, bf16 or fp16.")] = "fp32",
    salvage: Salvage = False,
    json: Json = False,
) -> None:
    """Write a posterior with all its rows to one .safetensors file, in bounded memory.

    The file holds the SWAG law itself: mean, diagonal and scaled deviations, readable by any safetensors library.
    """
    from weightbank.cli.looking import export

    show_facts(export(place, output, rank=None, dtype=dtype, salvage=salvage), json=json)


def _to_the_end(action: Callable[[], None], path: Path, *, resumable: bool) -> None:
    """Run an action; on Ctrl-C say how to go on, and exit with code 130."""
    try:
        action()
    except KeyboardInterrupt:
        note(f"stopped; go on with: weightbank posterior resume {path}" if resumable else "stopped; nothing was kept")
        raise typer.Exit(130) from None

"""From the settings of a low-precision training run to its weights, its average, and their comparison."""

from collections.abc import Callable, Sized
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch.optim.lr_scheduler import LambdaLR

from weightbank.cli.augment import CroppedFlipped, normalise
from weightbank.cli.console import say, say_wrapped, show_json, show_table
from weightbank.cli.runs import task_of
from weightbank.cli.training_settings import RUN_FILE, Settings, precision_of
from weightbank.distributions import Moments
from weightbank.distributions.packed import PackedWeights, pack
from weightbank.errors import DataError, StoreError
from weightbank.evaluation import Evaluation, evaluate
from weightbank.formats import Format, Native, format_of
from weightbank.layout import Layout
from weightbank.logs import TrainingLog
from weightbank.lowprecision import (
    Attached,
    ExactAverage,
    Precision,
    RoundedAverage,
    constant_schedule,
    published_schedule,
)
from weightbank.lowprecision.points import Evaluating
from weightbank.sizes import readable
from weightbank.task import Task, TensorBatches
from weightbank.training import epochs
from weightbank.types import Flat

Average: TypeAlias = Moments | ExactAverage | RoundedAverage

CHECKPOINT, AVERAGE, LAST = "checkpoint.safetensors", "average.safetensors", "last.safetensors"


def run_new(settings: Settings, directory: Path, *, json: bool) -> None:
    """Train, average, pack and compare."""
    if (directory / RUN_FILE).exists():
        raise StoreError(
            f"{directory}: there is a run here already; `weightbank train --resume --out {directory}` goes on with it, "
            "or name another --out"
        )
    precision_of(settings)
    task = prepare(settings)
    check(settings, task)
    directory.mkdir(parents=True, exist_ok=True)
    settings.save(directory)
    _run(settings, task, directory, json=json)


def run_again(directory: Path, *, json: bool) -> None:
    """Go on with the run in a directory."""
    settings = Settings.load(directory)
    _run(settings, prepare(settings), directory, json=json)


def prepare(settings: Settings) -> Task:
    """Load the data and build the model."""
    task, images = task_of(
        settings.model, settings.data, seed=settings.seed, batch_size=settings.batch_size, device=settings.device
    )
    if images is None:
        if settings.augment:
            raise DataError(f"--augment is for the images of --data; {settings.model} makes a Task with its own data")
        return task
    if settings.normalise:
        normalise(task)
    if settings.augment:
        assert isinstance(task.train, TensorBatches)
        task.train = CroppedFlipped(task.train)
    return task


def check(settings: Settings, task: Task) -> None:
    """Refuse before the first epoch what would fail after the last: rates, and formats that do not fit the weights."""
    schedule_of(settings)
    average_of(settings, task.layout)
    kept = [] if settings.average_in in ("exact", "fp32") else [format_of(settings.average_in)]
    for format in (*packed_formats(settings), *kept):
        pack(task.theta(), task.layout, format)


def packed_formats(settings: Settings) -> tuple[Format, Format]:
    """The formats of the last iterate and of the average in their files."""
    own = cast("Format | None", precision_of(settings).weights) or Native("float32")
    return own, own if settings.pack is None else format_of(settings.pack)


def schedule_of(settings: Settings) -> Callable[[int], float]:
    """The factor on the learning rate in each epoch; `DataError` for rates that are not positive."""
    make = published_schedule if settings.schedule == "published" else constant_schedule
    return make(settings.learning_rate, start=settings.average_from, average_lr=settings.average_learning_rate)


def average_of(settings: Settings, layout: Layout) -> Average:
    """Where the average is kept: full precision, exact sums, or a format of few bits."""
    if settings.average_in == "exact":
        return ExactAverage(layout)
    if settings.average_in == "fp32":
        return Moments(layout, variance=False)
    return RoundedAverage(layout, format_of(settings.average_in), seed=settings.seed)


def train(settings: Settings, task: Task, attached: Attached, directory: Path | None) -> Average:
    """Train to the end and return the average, which holds nothing if the run ends before averaging starts."""
    optimizer = attached.optimizer(
        torch.optim.SGD(
            task.model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    )
    average, every = average_of(settings, task.layout), settings.average_every
    first = settings.average_from * len(cast("Sized", task.train))

    def each_step(theta: Flat, *, step: int) -> None:
        if step > first and (step - first) % every == 0:
            average.update(theta)

    with nullcontext() if directory is None else TrainingLog(directory) as log:
        for epoch in epochs(
            task,
            optimizer,
            count=settings.epochs,
            each_step=each_step if every else None,
            scheduler=LambdaLR(optimizer, schedule_of(settings)),
            checkpoint=None if directory is None else directory / CHECKPOINT,
            stateful={"average": average},
            log=log,
        ):
            if not every and epoch >= settings.average_from:
                average.update(task.theta())
    return average


def _run(settings: Settings, task: Task, directory: Path, *, json: bool) -> None:
    precision = precision_of(settings)
    if not json:
        said = ", ".join(f"{name} {format or 'full'}" for name, format in asdict_of(precision).items())
        say_wrapped(f"{settings.model} on {settings.data}: {task.layout.size:,} weights; {said}.")
    with precision.attached(task.model) as attached:
        average = train(settings, task, attached, directory)
        own, format = packed_formats(settings)
        last = pack(task.theta(), task.layout, own, directory / LAST)
        rows = _compare(task, attached, "last iterate", task.theta(), last.nbytes)
        if average.count:
            mean = average.mean()
            size = mean.nbytes if isinstance(average, Moments) else average.nbytes
            rows += _compare(task, attached, f"average of {average.count}", mean, size)
            packed = pack(mean, task.layout, format, directory / AVERAGE)
            rows += _compare(task, attached, f"average in {_short(format, settings.pack)}", packed, packed.nbytes)
    if json:
        document = [
            {"law": law, "activations": how, "bytes": size, **found.to_dict()} for law, how, size, found in rows
        ]
        show_json(
            {"directory": str(directory), "settings": asdict(settings), "weights": task.layout.size, "laws": document}
        )
        return
    _show(rows, precision)
    if not average.count:
        say(f"No average: the run ends before epoch {settings.average_from + 1}, see --epochs and --average-from.")
    files = f"{directory / LAST}" + (f" and {directory / AVERAGE}" if average.count else "")
    say(f"Weights without BatchNorm statistics in {files}.")


def asdict_of(precision: Precision) -> dict[str, Format | None]:
    """The six formats by name."""
    return {field.name: getattr(precision.formats, field.name) for field in fields(precision.formats)}


Row = tuple[str, str, int, Evaluation]


def _compare(task: Task, attached: Attached, name: str, law: torch.Tensor | PackedWeights, size: int) -> list[Row]:
    """One law with activations as in training, and in full precision; BatchNorm statistics are its own each time."""
    found: list[Row] = []
    theta = law.mean() if isinstance(law, PackedWeights) else law
    quantized = any(chosen.activations is not None for chosen in attached.formats.values())
    ways: list[tuple[Evaluating, str]] = [("keep", "quantized")] if quantized else []
    for mode, how in [*ways, ("off", "full")]:
        with attached.evaluating(mode):
            found.append((name, how, size, evaluate(task, theta.to(task.device))))
    return found


def _show(rows: list[Row], precision: Precision) -> None:
    cells = []
    for law, how, size, found in rows:
        accuracy, nll = found.accuracy, found.nll
        spread = 0.0 if accuracy.stderr is None else accuracy.stderr
        error = f"{100 * (1 - accuracy.mean):.2f}±{100 * spread:.2f}"
        cells.append([law, how, error, f"{nll.mean:.4f}", readable(size)])
    show_table(["weights", "activations", "test error %", "NLL", "bytes"], cells)
    say(f"{len(rows[0][3].targets):,} test examples, ± one standard error over examples; one training run.")
    if precision.activations is not None:
        say_wrapped("Compare lines of equal activations: the others differ in more than the weights.")


def _short(format: Format, given: str | None) -> str:
    return given if given is not None else f"{format.bits_per_weight:.3g} bits"

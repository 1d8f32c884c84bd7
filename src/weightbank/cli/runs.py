"""From the settings of a run to its data, model, rows and results."""

import time
from collections.abc import Sized
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from weightbank.cli.console import say, show_json
from weightbank.cli.own import called
from weightbank.cli.planning import parse_keep
from weightbank.cli.settings import RUN_FILE, Settings
from weightbank.cli.tables import comparison, show_comparison
from weightbank.data import ImageData, load
from weightbank.distributions import Moments
from weightbank.errors import DataError, LayoutError, StoreError
from weightbank.logs import TrainingLog
from weightbank.posterior import Timings, compare, plan, record, swag_schedule
from weightbank.posterior.plan import Plan
from weightbank.sizes import readable
from weightbank.store import RowLog
from weightbank.task import Task, TensorBatches
from weightbank.zoo import MODELS, build, mlp, small_cnn

SHAPED = ("mlp", "small_cnn")
"""Models that are built to fit the data."""


@dataclass
class Prepared:
    """A run that is ready to train: nothing has been written for it yet."""

    settings: Settings
    task: Task
    planned: Plan
    seconds: dict[str, float]


def run_new(settings: Settings, directory: Path, *, samples: int, erase: bool, json: bool) -> None:
    """Check that there is room, train, record, and compare the laws."""
    refuse_existing(directory)
    prepared = prepare(settings, directory)
    prepared.planned.check()
    _run(prepared, directory, samples=samples, fresh=True, erase=erase, json=json)


def run_again(directory: Path, *, samples: int, json: bool) -> None:
    """Go on with the run in a directory."""
    settings = Settings.load(directory)
    _run(prepare(settings, directory), directory, samples=samples, fresh=False, erase=False, json=json)


def task_of(model: str, data: str | ImageData, **options: Any) -> tuple[Task, ImageData | None]:
    """A model by name with its data, or what `FILE:FUNCTION` makes: a model for the data, or a task with its own.

    options: seed, batch_size and device, of `make_task`. Also returns the data, if they are not the task's own.
    """
    torch.manual_seed(options.get("seed", 0))
    made = called(model) if ":" in model else None
    if isinstance(made, Task):
        return made, None
    images = load(data) if isinstance(data, str) else data
    return make_task(model, images, own=made, **options), images


def make_task(
    name: str,
    data: ImageData,
    *,
    own: torch.nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 128,
    device: str = "cpu",
) -> Task:
    """A model by name, freshly drawn from the seed, or `own`, with its data; `DataError` if they do not fit."""
    torch.manual_seed(seed)
    channels, height, width = data.shape
    if own is not None:
        model = own
    elif name == "mlp":
        model = mlp(channels * height * width, 64, len(data.classes))
    elif name == "small_cnn":
        model = small_cnn(channels=channels, size=min(height, width), classes=len(data.classes))
    elif name in MODELS:
        model = build(name)
    else:
        raise LayoutError(
            f"no model is called '{name}'; take {', '.join(SHAPED)} (both fit any data), a function of your own as "
            f"FILE:FUNCTION, or one of {', '.join(MODELS)}"
        )
    _check_fit(name, model, data)
    train = TensorBatches(*data.train, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device {device!r}: {str(error).splitlines()[0]}; use --device cpu") from error
    return Task(data.name, model, F.cross_entropy, train, data.test, batch_size=512)


def prepare(settings: Settings, directory: Path) -> Prepared:
    """Load the data, build the model and plan the posterior; nothing is written."""
    start = time.perf_counter()
    data = settings.data if ":" in settings.model else load(settings.data)
    loaded = time.perf_counter()
    task, _ = task_of(settings.model, data, seed=settings.seed, batch_size=settings.batch_size, device=settings.device)
    made = time.perf_counter()
    if not isinstance(task.train, Sized):
        raise DataError(f"{settings.model}: the length of its training data is not known; give its loader a length")
    batches = len(task.train)
    iterates = (settings.epochs - settings.skip_epochs) * (batches // settings.every)
    if iterates < 1:
        raise DataError(
            f"{settings.epochs} epochs of {batches} minibatches, less {settings.skip_epochs} skipped, every "
            f"{settings.every}-th recorded, make no iterate; wanted at least 1"
        )
    planned = plan(
        task.layout,
        iterates=iterates,
        format=settings.format,
        keep=parse_keep(settings.keep),
        where=rows_place(settings, directory),
        checkpoint=settings.medium != "memory",
    )
    return Prepared(settings, task, planned, {"data": loaded - start, "model": made - loaded})


def posterior_bytes(planned: Plan) -> int:
    """Bytes of rows, moments and records, without the checkpoint of the training."""
    in_memory = planned.memory["record"] if not planned.disk else 0
    return in_memory + planned.bytes - planned.disk.get("checkpoint", 0)


def rows_place(settings: Settings, directory: Path) -> str | Path:
    """Where the rows of a run are: below its directory, in memory, or on a device-DAX node."""
    if settings.medium == "memory":
        return ":memory:"
    return Path(settings.node) if settings.medium == "dax" and settings.node else directory / "rows"


def refuse_existing(directory: Path) -> None:
    """`StoreError` where a run or rows are already."""
    if (directory / RUN_FILE).exists() or (directory / "rows" / "manifest.json").exists():
        raise StoreError(
            f"{directory}: there is a run here already; `weightbank posterior resume {directory}` goes on with it, or "
            "name another --path"
        )
    if (directory / "manifest.json").exists():
        raise StoreError(f"{directory}: there are rows here already; name another --path")


def train(prepared: Prepared, directory: Path, rows: RowLog, timings: Timings) -> Moments:
    """Train and record until the end; the moments come back open, with every row stored."""
    settings, task = prepared.settings, prepared.task
    start = time.perf_counter()
    moments = Moments(task.layout, rows=rows, keep=parse_keep(settings.keep))
    timings.put("posterior size (byte)", posterior_bytes(prepared.planned))
    timings.put("train data loading time (s)", prepared.seconds["data"])
    timings.put("test data loading time (s)", 0.0)
    timings.put("make model time (s)", prepared.seconds["model"])
    timings.put("make posterior time (s)", time.perf_counter() - start)
    optimizer = torch.optim.SGD(
        task.model.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    scheduler = None
    if settings.schedule == "swag":
        scheduler = swag_schedule(optimizer, start=max(1, settings.skip_epochs), lr=settings.swa_learning_rate)
    kept = settings.medium != "memory"
    try:
        with TrainingLog(directory) if kept else nullcontext() as log:
            seconds = record(
                task,
                optimizer,
                moments,
                epochs=settings.epochs,
                directory=directory if kept else None,
                every=settings.every,
                skip_epochs=settings.skip_epochs,
                scheduler=scheduler,
                timings=timings,
                log=log,
            )
    except BaseException:
        moments.close()
        raise
    start = time.perf_counter()
    moments.flush()
    last = time.perf_counter() - start
    timings.put("posterior finalize time (s)", last)
    timings.put("total experiment time (s)", seconds + last)
    timings.put("total script time (s)", seconds + last + sum(prepared.seconds.values()))
    return moments


def _run(prepared: Prepared, directory: Path, *, samples: int, fresh: bool, erase: bool, json: bool) -> None:
    settings, planned = prepared.settings, prepared.planned
    kept = settings.medium != "memory"
    log = _open_for_writing(settings, directory, fresh=fresh, erase=erase)
    csv = directory / "timings.csv" if kept else None
    timings = Timings(csv if settings.csv is None else settings.csv, resume=not fresh)
    if fresh and kept:
        settings.save(directory)
    if not json:
        say(
            f"{settings.model} on {settings.data}: {planned.weights:,} weights, {planned.iterates:,} iterates in "
            f"{settings.format}, {readable(posterior_bytes(planned))} in {rows_place(settings, directory)}"
        )
    moments = train(prepared, directory, log, timings)
    try:
        rows = compare(prepared.task, moments, samples=samples) if samples else []
        for row in rows:
            for metric, found in row.metrics.items():
                timings.put(f"{row.name}: {metric}", found.mean)
    finally:
        moments.close()
    if json:
        compared = comparison(rows) if rows else {}
        document = {"directory": str(directory), "settings": asdict(settings), "plan": planned.to_dict()}
        show_json({**document, "timings": timings.rows, **compared})
        return
    if rows:
        show_comparison(rows)
    if kept:
        say(f"Look again with: weightbank posterior evaluate {directory}")


def _open_for_writing(settings: Settings, directory: Path, *, fresh: bool, erase: bool) -> RowLog:
    where: Any = rows_place(settings, directory)
    if settings.medium == "dax":
        from weightbank.store.dax import DaxDevice

        where = DaxDevice(where, erase=erase)
    durability: Any = settings.durability  # RowLog checks it
    rows = RowLog(where, format=settings.format, durability=durability)
    if fresh and rows.created:
        rows.close()
        raise StoreError(f"{rows.medium!r}: holds a posterior already; resume its run, or begin anew with --erase")
    return rows


def _check_fit(name: str, model: torch.nn.Module, data: ImageData) -> None:
    shape = "x".join(str(number) for number in data.shape)
    model.eval()
    try:
        with torch.no_grad():
            out = model(data.train[0][:1])
    except (RuntimeError, TypeError) as error:
        fitting = "--data mnist:FOLDER has 28x28 grey images" if name.startswith("model_") else "take other --data"
        raise DataError(
            f"{name} does not take images of {shape} as in '{data.name}'; {fitting}; the models "
            f"{' and '.join(SHAPED)} fit any"
        ) from error
    model.train()
    if out.shape[-1] < len(data.classes):
        raise DataError(f"{name} tells {out.shape[-1]} classes apart, '{data.name}' has {len(data.classes)}")

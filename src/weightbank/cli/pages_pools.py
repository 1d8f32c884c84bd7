"""What `weightbank pages` does with the file of a pool."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from weightbank.cli.cim_network import Wanted, prepared
from weightbank.cli.console import say, show_facts, show_json, show_table
from weightbank.curvature import fisher
from weightbank.errors import ConflictError, DataError, LayoutError, StoreError
from weightbank.evaluation import evaluate
from weightbank.layout import Where
from weightbank.logs import TrainingLog
from weightbank.paging import Converted, Pool, Tuned, convert, tune, vectors
from weightbank.paging.importance import importance_of
from weightbank.paging.tenant import Tenant
from weightbank.sizes import readable
from weightbank.store.arrays import save_arrays
from weightbank.task import Task


def create(file: Path, capacity: int | str, *, dtype: str, reserve: int, json: bool) -> None:
    """Write an empty pool; `StoreError` where a file is."""
    if file.exists():
        raise StoreError(f"{file}: is there already; name another file, or remove it")
    pool = Pool(capacity, dtype=dtype, reserve=reserve)
    pool.save(file)
    facts = {"file": str(file), "positions": pool.size, "format": repr(pool.format), "reserve": pool.reserve}
    show_facts({**facts, "bytes": pool.nbytes}, json=json)


def add(
    file: Path,
    wanted: Wanted,
    *,
    name: str | None,
    images: int,
    exclusive: str,
    options: Mapping[str, Any],
    json: bool,
) -> None:
    """Train or read a network, place it, and save the pool."""
    chosen = name or Path(wanted.network.partition(":")[0]).stem
    rule = _rule(exclusive)
    if chosen in Pool.open(file):
        raise LayoutError(f"{file}: '{chosen}' is in the pool already; pass another --name")
    network = prepared(wanted)
    data = wanted.data if ":" in network.model else network.data  # code may bring its own
    notes = {"model": network.model, "data": None if data is None else _absolute(data), "seed": wanted.seed}
    importance = importance_of(network.task, partial(fisher, images=images))

    def put(pool: Pool) -> None:
        pool.add(network.task, name=chosen, importance=importance, exclusive=rule, notes=notes, **options)

    pool = edited(file, put)
    row = next(row for row in pool.report().tenants if row.name == chosen)
    facts = {"name": chosen, "weights": row.weights, "shared": row.shared, "exclusive": row.exclusive}
    show_facts({**facts, "zero_copy": row.zero_copy, "packing": pool.report().packing}, json=json)


def _rule(text: str) -> Where | float | None:
    if text in ("none", "vectors"):
        return vectors if text == "vectors" else None
    try:
        return float(text)
    except ValueError:
        raise DataError(f"--exclusive {text}; wanted none, vectors, or a fraction such as 0.02") from None


def edited(file: Path, edit: Callable[[Pool], None]) -> Pool:
    """The pool in a file, edited and saved; what others save meanwhile is read again and edited, not lost."""
    while True:
        pool = Pool.open(file)
        edit(pool)
        try:
            pool.save(file)
        except ConflictError:
            continue
        return pool


def remove(file: Path, name: str, *, json: bool) -> None:
    """Take a tenant out of the file."""
    pool = edited(file, lambda pool: pool.remove(name))
    show_facts({"removed": name, "left": list(pool)}, json=json)


def tune_file(
    file: Path,
    only: Sequence[str] | None,
    models: Sequence[str] | None,
    settings: Mapping[str, Any],
    *,
    log: Path | None,
    json: bool,
) -> bool:
    """Tune the pool in a file and save it if the result may be kept; whether it was."""
    pool = Pool.open(file)
    tasks = {name: task_of(pool.generation.tenant(name), models) for name in only or list(pool)}
    with nullcontext() if log is None else TrainingLog(log) as writer:
        done = tune(pool, tasks, **settings, log=None if writer is None else writer.scores)
    return _ended(done, pool, file, "tuned", json=json)


def convert_file(
    file: Path,
    dtype: str,
    output: Path | None,
    only: Sequence[str] | None,
    models: Sequence[str] | None,
    settings: Mapping[str, Any],
    *,
    json: bool,
) -> bool:
    """Convert the pool in a file and save it if the result may be kept; whether it was. None rounds to nearest."""
    pool = Pool.open(file)
    names = [] if only is None else only or list(pool)
    done = convert(pool, dtype, {name: task_of(pool.generation.tenant(name), models) for name in names}, **settings)
    return _ended(done, pool, output or file, "converted", json=json)


def _ended(done: Tuned | Converted, pool: Pool, file: Path, what: str, *, json: bool) -> bool:
    """Save what may have taken hours, beside the file if others have saved to it, and tell; True if committed."""
    if done.committed:
        try:
            pool.save(file)
        except ConflictError as error:
            aside = file.with_name(f"{file.stem}.{what}{file.suffix}")
            pool.save(aside)
            raise ConflictError(f"{file}: was replaced while it was {what}; the {what} pool is {aside}") from error
    if json:
        show_json(done.to_dict())
    else:
        say(str(done))
    return done.committed


def evaluate_file(file: Path, name: str | None, models: Sequence[str] | None, *, json: bool) -> None:
    """Measure the tenants on their test data."""
    pool = Pool.open(file)
    found = []
    for tenant in [name] if name is not None else list(pool):
        task = task_of(pool.generation.tenant(tenant), models)
        task.model.load_state_dict(pool.materialise(tenant))
        found.append((tenant, evaluate(task, task.theta(), batch_norm="keep")))
    if json:
        show_json({"tenants": {tenant: evaluation.to_dict() for tenant, evaluation in found}})
        return
    if not found:
        say(f"{file}: nobody is in this pool yet; `weightbank pages add` puts a network in")
        return
    metrics = list(dict.fromkeys(metric for _, evaluation in found for metric in evaluation.average))
    shown = [metric for metric in ("accuracy", "nll", "ece", "brier", "rmse") if metric in metrics]
    rows = [
        [tenant, *(e[metric].text if metric in e.average else "" for metric in shown), f"{len(e.targets):,}"]
        for tenant, e in found
    ]
    show_table(["network", *shown, "examples"], rows)


def show(file: Path, *, json: bool) -> None:
    """List the tenants and the bytes."""
    pool = Pool.open(file)
    report = pool.report()
    if json:
        notes = {name: dict(tenant.notes) for name, tenant in pool.generation.tenants.items()}
        show_json({**report.to_dict(), "generation": pool.generation.number, "notes": notes})
        return
    say(
        f"{report.positions:,} positions of {report.format}, generation {pool.generation.number}: "
        f"{report.packing:.2f} weights each, {report.saving:.2f} times less than apart"
    )
    rows = []
    for row in report.tenants:
        how = "views" if row.zero_copy else f"{row.pages:,} pages" if row.pages else "codes"
        rest = readable(row.bytes_rest)
        rows.append([row.name, f"{row.weights:,}", f"{row.shared:,}", f"{row.exclusive:,}", rest, how])
    show_table(["network", "weights", "shared", "exclusive", "beside", "runs from"], rows)
    sharing = ", ".join(f"{count:,} by {number}" for number, count in enumerate(report.occupancy) if count)
    say(f"positions used {sharing}; {readable(report.bytes_owner)} in all")


def materialise(file: Path, name: str, output: Path, *, json: bool) -> None:
    """Write a tenant's state_dict."""
    pool = Pool.open(file)
    state = pool.materialise(name)
    save_arrays(output, state, {"format": "pt"})
    facts = {"file": str(output), "tensors": len(state), "numbers": sum(value.numel() for value in state.values())}
    show_facts({**facts, "bytes": output.stat().st_size}, json=json)


def task_of(tenant: Tenant, models: Sequence[str] | None) -> Task:
    """The task a tenant was added with, built anew from its notes; its weights do not matter.

    Raises `DataError` for a tenant without notes, or from code that was not named again: no file may call code.
    """
    given = dict(_named(text) for text in models or [])
    model, data = tenant.notes.get("model"), tenant.notes.get("data")
    if tenant.name in given:
        own = prepared(Wanted(given[tenant.name], None if data is None else str(data)))
        return _checked(own.task, tenant)
    if isinstance(model, str) and (":" in model or Path(model).suffix == ".safetensors"):
        raise DataError(
            f"'{tenant.name}' is made by '{model}', and no file may call code: name it again with "
            f"--model {tenant.name}={model}"
        )
    if not isinstance(model, str) or not isinstance(data, str):
        raise DataError(
            f"'{tenant.name}' was stored without the names of its model and data; pass "
            f"--model {tenant.name}=FILE:FUNCTION, which returns its weightbank.Task"
        )
    return _checked(prepared(Wanted(model, data, epochs=0)).task, tenant)


def _checked(task: Task, tenant: Tenant) -> Task:
    if task.layout.fingerprint != tenant.layout.fingerprint:
        raise LayoutError(f"{task} is not the network that was added as '{tenant.name}'")
    return task


def _named(text: str) -> tuple[str, str]:
    name, mark, model = text.partition("=")
    if not mark or not name or not model:
        raise DataError(f"--model {text!r}; wanted NAME=FILE:FUNCTION")
    return name, model


def _absolute(data: str) -> str:
    kind, _, place = data.partition(":")
    return f"{kind}:{Path(place).absolute()}" if place and kind != "hub" else data

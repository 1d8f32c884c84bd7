"""What `weightbank inspect` shows: a model or a file, and what each job would need of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightbank.cli.cim_network import Wanted, prepared
from weightbank.cli.console import say, say_wrapped, show_json, show_table
from weightbank.cli.inspecting_files import describe_file
from weightbank.cli.inspecting_time import BATCH, times_of
from weightbank.cli.looking import describe_posterior
from weightbank.cli.needs import facts_of, needs_of
from weightbank.cli.own import called
from weightbank.cli.runs import SHAPED
from weightbank.errors import DataError
from weightbank.layout import Layout
from weightbank.report.tables import Table, tables_of
from weightbank.task import Task
from weightbank.zoo import MODELS, build

MOST = 40
"""Rows of a table for people; the JSON document has all."""


def show_inspection(subject: str, data: str | None, batch_size: int | None, *, json: bool) -> None:
    """Print what a model or a file is and needs."""
    document = inspected(subject, data, batch_size)
    if json:
        show_json(document)
        return
    for table in tables_of(document):
        _show(table)


def inspected(subject: str, data: str | None = None, batch_size: int | None = None) -> dict[str, Any]:
    """The document of `inspect`.

    Raises `LayoutError` for a name that no model has, `DataError` for data that do not fit, `CorruptError` for a file
    that is not whole, `StoreError` for none.
    """
    path = Path(subject)
    if path.suffix == ".safetensors" or path.is_dir():
        if data is not None:
            raise DataError(f"{subject} is looked at without its tensors, so nothing can be timed; leave out --data")
        if path.is_dir():
            return {"inspected": subject, "what": "posterior", **describe_posterior(path, verify=False, salvage=False)}
        found, layout = describe_file(path)
        return {"inspected": subject, **found, **({} if layout is None else needs_of(layout))}
    model, task = _subject(subject, data)
    layout = Layout.of(model) if task is None else task.layout
    document = {"inspected": subject, "what": "model", **facts_of(model, layout), **needs_of(layout, model)}
    if task is not None:
        document["time"] = times_of(task, BATCH if batch_size is None else batch_size)
    return document


def _subject(name: str, data: str | None) -> tuple[nn.Module, Task | None]:
    """The model, without numbers where that will do, and the task where there are data to time it on."""
    if data is not None:
        network = prepared(Wanted(name, data, epochs=None if ":" in name else 0))
        return network.task.model, network.task
    if ":" in name:
        made = called(name)
        return (made.model, made) if isinstance(made, Task) else (made, None)
    if name in SHAPED:
        return prepared(Wanted(name, "digits", epochs=0)).task.model, None
    if name not in MODELS and Path(name).exists():
        raise DataError(f"{name}: neither a model nor a .safetensors file; `weightbank report` shows .json files")
    with torch.device("meta"):
        return build(name), None


def _show(table: Table) -> None:
    if table.columns == ("", "value"):
        if table.caption:
            say(f"\n{table.caption}")
        width = max(len(name) for name, _ in table.rows)
        for name, value in table.rows:
            say_wrapped(f"{name.ljust(width)}  {value}")
        return
    rows: Sequence[Sequence[str]] = table.rows
    if len(rows) > MOST:
        rows = [*rows[:MOST], [f"... {len(rows) - MOST} more", *[""] * (len(table.columns) - 1)]]
    say(f"\n{table.caption}")
    show_table(table.columns, rows)

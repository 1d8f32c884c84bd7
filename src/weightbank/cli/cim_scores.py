"""What `cim curvature` and `cim rank` do: scores kept with their weights, and what each layer has of them."""

import time
from pathlib import Path
from typing import Any

import torch

from weightbank.cim import Cells, Device, benefit, rank, select, select_cells
from weightbank.cim.montecarlo import Scorer
from weightbank.cli.cim_methods import CURVATURES, Scores
from weightbank.cli.cim_network import Network, Wanted, facts, prepared
from weightbank.cli.console import say, say_wrapped, show_json, show_table
from weightbank.errors import DataError
from weightbank.store.arrays import save_arrays
from weightbank.task import Task
from weightbank.types import Flat

ORDER = "weightbank order 1"
MOST = 40
"""Layers that a table lists; the others are in the JSON document."""


def clean_score(task: Task) -> float:
    """The accuracy of the present weights on the test data (minus the loss for floating targets)."""
    scorer, theta = Scorer(task), task.theta()
    return float((scorer.run(lambda: theta) * scorer.weights).sum())


def cells_of(network: Network, device: Device) -> Cells:
    """The network's weights on the cells; `DataError` if none of them is on the device."""
    cells = Cells.of(network.task, device)
    if cells.count == 0:
        raise DataError(
            f"none of the {cells.layout.size:,} weights of {network.model} is on the device, which takes matrices and "
            "kernels; --memory analog=everything takes all, or unfreeze some"
        )
    return cells


def show_curvature(
    wanted: Wanted, which: list[str], output: Path, *, images: int | None, batch_size: int | None, json: bool
) -> None:
    """Compute scores and keep them with the weights; those the network's file has already stay."""
    unknown = [name for name in which if name not in CURVATURES]
    if unknown:
        raise DataError(f"no curvature is called '{unknown[0]}'; there are: {', '.join(CURVATURES)}")
    network = prepared(wanted)
    scores = Scores(network, images, batch_size, wanted.seed)
    rows: list[dict[str, Any]] = []
    for name in which:
        start = time.perf_counter()
        network.scores[name] = scores.computed(name)
        seconds = time.perf_counter() - start
        rows.append({"scores": name, "seconds": seconds, **_figures(network.scores[name])})
    network.save(output)
    clean, layout = clean_score(network.task), network.task.layout
    if json:
        found = {"file": str(output), "layout": layout.fingerprint, "weights": layout.size, "score": clean}
        show_json({**found, "made_of": facts(wanted), "curvatures": rows})
        return
    say(f"{network.model} on {network.data}: {layout.size:,} weights score {clean:.4f} on the test data")
    names = ("scores", "seconds", "sum", "largest", "zeros", "hold 90 %")
    shown = [
        [row["scores"], f"{row['seconds']:.2f}", f"{row['sum']:.4g}", f"{row['largest']:.4g}"]
        + [f"{100 * row[name]:.1f} %" for name in ("zeros", "holding")]
        for row in rows
    ]
    show_table(names, shown)
    say(f"Kept with the weights in {output}")


def _figures(scores: Flat) -> dict[str, Any]:
    """holding: the smallest share of the weights that holds nine tenths of the sum."""
    total = scores.double().clamp(min=0).sort(descending=True).values.cumsum(0)
    enough = int(torch.searchsorted(total, 0.9 * total[-1])) + 1
    return {
        "sum": float(scores.sum(dtype=torch.float64)),
        "largest": float(scores.max()),
        "zeros": float((scores == 0).double().mean()),
        "holding": enough / len(scores),
    }


def show_rank(wanted: Wanted, device: Device, which: str, fraction: float, output: Path | None, *, json: bool) -> None:
    """Print what each parameter tensor has of the weights, of the curvature, and of what a fraction verified picks."""
    network = prepared(wanted)
    cells, scores = cells_of(network, device), Scores(network, seed=wanted.seed).of(which)
    worth = benefit(scores, cells)
    order = rank(worth, tie=cells.relative)
    chosen = select(order, fraction, among=cells.on_device)
    chosen_cells = select_cells(scores, cells, fraction)
    rows: list[dict[str, Any]] = []
    total, saved = float(scores.double().clamp(min=0).sum()), float(worth.double().clamp(min=0).sum())
    for entry in cells.layout.entries:
        place = slice(entry.offset, entry.offset + entry.size)
        if not bool(cells.on_device[place].any()):
            continue
        rows.append(
            {
                "tensor": entry.name,
                "weights": entry.size,
                "of_weights": entry.size / cells.count,
                "of_curvature": float(scores[place].double().clamp(min=0).sum()) / total if total else 0.0,
                "of_worth": float(worth[place].double().clamp(min=0).sum()) / saved if saved else 0.0,
                "weights_chosen": float(chosen[place].double().mean()),
                "cells_chosen": float(chosen_cells[:, place].double().mean()),
            }
        )
    if output is not None:
        save_arrays(output, {"order": order}, {"weightbank": ORDER, "fingerprint": cells.layout.fingerprint})
    bits = [float(row[cells.on_device].double().mean()) for row in chosen_cells]
    if json:
        digital = cells.layout.size - cells.count
        found = {"fraction": fraction, "scores": which, "on_device": cells.count, "digital": digital}
        file = None if output is None else str(output)
        show_json({**found, "file": file, "device": device.describe(), "tensors": rows, "cells_by_place": bits})
        return
    say_wrapped(
        f"{network.model} on {network.data}: {cells.count:,} weights on the device, "
        f"{cells.layout.size - cells.count:,} digital. Verified, a fraction of {fraction:g} by {which}:"
    )
    keys = ("of_weights", "of_curvature", "of_worth", "weights_chosen", "cells_chosen")
    table = [[row["tensor"], f"{row['weights']:,}", *(f"{100 * row[key]:.1f} %" for key in keys)] for row in rows]
    if len(table) > MOST:
        table = [*table[:MOST], [f"... {len(table) - MOST} more", *[""] * 6]]
    columns = ["tensor", "weights", "of all", "of curvature", "of loss saved", "weights verified", "cells verified"]
    show_table(columns, table)
    places = ", ".join(f"{bit:.1%}" for bit in bits)
    say_wrapped(f"Of the cells, most significant first, are verified when cells are chosen singly: {places}.")
    if output is not None:
        say(f"The order of the weights, best first, is in {output}")

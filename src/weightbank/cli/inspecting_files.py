"""What a `.safetensors` file is, who wrote it, and what is in it, from its header alone: no tensor is read."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from weightbank.distributions.packed import PackedWeights
from weightbank.errors import CorruptError, WeightbankError
from weightbank.formats import format_of
from weightbank.layout import Entry, Layout
from weightbank.store.arrays import ArrayFile

MOST_TEXT = 200
"""Characters of a text of the file that are shown."""

STATE = "state."
_UNREADABLE = (WeightbankError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def describe_file(path: Path) -> tuple[dict[str, Any], Layout | None]:
    """A file's document, and the layout of its weights if it says which they are.

    Raises `CorruptError` for a file that is not whole, or whose description contradicts itself, `StoreError` for none.
    """
    with ArrayFile(path) as file:
        marker = file.metadata.get("weightbank", "")
        what, writer, read = KINDS.get(marker, ("tensors", "another program", _foreign))
        try:
            about, layout = read(file)
        except CorruptError:
            raise
        except _UNREADABLE as error:
            raise CorruptError(f"{path}: what it says of itself cannot be read: {str(error)[:MOST_TEXT]}") from error
        sizes = {name: math.prod(shape) * file.dtypes[name].itemsize for name, shape in file.shapes.items()}
        arrays = [
            {"array": name, "dtype": _dtype(file.dtypes[name]), "shape": _shape(shape), "bytes": sizes[name]}
            for name, shape in file.shapes.items()
        ]
        document = {
            "what": what,
            "written_by": writer,
            "marker": marker[:MOST_TEXT] or None,
            "file_bytes": path.stat().st_size,
            "weights": None if layout is None else layout.size,
            "layout": None if layout is None else layout.fingerprint,
            **about,
            "arrays": arrays,
        }
    return document, layout


Described = tuple[dict[str, Any], Layout | None]


def _gaussian(file: ArrayFile) -> Described:
    layout = Layout.parse(json.loads(file.metadata["layout"]))
    if file.shapes["mean"] != (layout.size,):
        raise CorruptError(
            f"{file.path}: a mean of shape {file.shapes['mean']} for a layout of {layout.size:,} weights"
        )
    rows = [shape[0] for shape in file.shapes.values() if len(shape) == 2 and shape[1] == layout.size]
    return {"rows": max(rows, default=0)}, layout


def _packed(file: ArrayFile) -> Described:
    packed, written = PackedWeights.open(file.path), json.loads(file.metadata["formats"])
    formats = {repr(format_of(str(written[name]))) for name in packed.layout.names}
    bits = 8 * packed.nbytes / packed.layout.size
    return {"formats": sorted(formats), "bits_per_weight": bits}, packed.layout


def _network(file: ArrayFile) -> Described:
    about = json.loads(file.metadata["network"])
    scores = [name.removeprefix("scores.") for name in file.shapes if name.startswith("scores.")]
    made = {name: str(about[name])[:MOST_TEXT] for name in ("model", "data")}
    fingerprint = str(about["fingerprint"])[:MOST_TEXT]
    return {"layout": fingerprint, "made_of": made, "scores": scores}, _state(file, STATE)


def _foreign(file: ArrayFile) -> Described:
    said = [f"{name}: {text}"[:MOST_TEXT] for name, text in file.metadata.items()]
    return {"layout": None, "metadata": said}, _state(file, "")


def _state(file: ArrayFile, prefix: str) -> Layout | None:
    """The floating tensors of a state_dict but running statistics, taken for weights; in the file's order."""
    entries, offset = [], 0
    for name, shape in file.shapes.items():
        own = name.startswith(prefix) and not name.endswith((".running_mean", ".running_var"))
        if own and file.dtypes[name] in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            entries.append(Entry(name.removeprefix(prefix), shape, offset, file.dtypes[name]))
            offset += entries[-1].size
    return Layout(tuple(entries)) if offset else None


def _pool(file: ArrayFile) -> Described:
    manifest = json.loads(file.metadata["manifest"])
    tenants: list[dict[str, Any]] = [
        {
            "name": str(item["name"])[:MOST_TEXT],
            "weights": Layout.parse(item["layout"]).size,
            "extents": len(item["extents"]),
            "pages": int(item["pages"]),
        }
        for item in manifest["tenants"]
    ]
    format, positions = format_of(str(manifest["format"])), int(manifest["positions"])
    facts = {"format": repr(format), "positions": positions, "reserve": int(manifest["reserve"])}
    weights = sum(tenant["weights"] for tenant in tenants)
    facts |= {"generation": int(manifest["generation"]), "weights_of_all": weights, "packing": weights / positions}
    return {**facts, "tenants": tenants}, None


def _plan(file: ArrayFile) -> Described:
    found = json.loads(file.metadata["plan"])
    names = ("fraction", "write_cycles", "clean", "max_drop", "met", "fingerprint")
    facts: dict[str, Any] = {name: found[name] for name in names}
    if not all(isinstance(value, (int, float, str)) for value in facts.values()):
        raise CorruptError(f"{file.path}: its promise is not made of numbers")
    device = {name: str(value)[:MOST_TEXT] for name, value in dict(found["device"]).items()}
    return {**facts, "device": device}, None


def _nothing(file: ArrayFile) -> Described:
    return {}, None


KINDS: dict[str, tuple[str, str, Callable[[ArrayFile], Described]]] = {
    "weightbank gaussian 1": ("a posterior's law", "posterior export or compress", _gaussian),
    "weightbank packed 1": ("weights in few bits", "train", _packed),
    "weightbank network 1": ("a network with scores", "cim curvature or cim run", _network),
    "weightbank order 1": ("an order of the weights, best first", "cim rank", _nothing),
    "weightbank write-verify plan 1": ("a plan of which cells to verify", "cim plan", _plan),
    "weightbank write-verify search 1": ("an unfinished search for such a plan", "cim plan", _nothing),
    "weightbank pool": ("a pool of networks", "pages create", _pool),
    "weightbank tuning 1": ("the checkpoint of a pool's tuning", "pages tune --checkpoint", _nothing),
    "weightbank checkpoint 2": ("the checkpoint of a training run", "train or posterior run", _nothing),
}
"""By the marker in the file: what it is, the command that writes it, and how its description is read."""


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"

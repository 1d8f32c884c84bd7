"""Nested state (of models, optimizers, schedulers, generators) in one `.safetensors` file, without pickle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightbank.errors import CorruptError, StoreError
from weightbank.store.arrays import load_arrays, save_arrays


def save_state(path: str | Path, state: Any, kind: str) -> None:
    """Save dicts, lists, tuples, numbers, strings, None, tensors and numpy arrays, atomically.

    Raises `StoreError` naming any value of another type.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, "state", tensors), separators=(",", ":"))
    save_arrays(path, tensors, {"weightbank": kind, "state": text})


def load_state(path: str | Path, kind: str) -> Any:
    """The inverse of `save_state`; `CorruptError` for a file that is not of this `kind`."""
    tensors, metadata = load_arrays(path)
    if metadata.get("weightbank") != kind:
        raise CorruptError(f"{path}: holds {metadata.get('weightbank', 'something else')!r}, wanted {kind!r}")
    try:
        return _unpack(json.loads(metadata["state"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path}: its state cannot be read: {error!r}") from error


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"$tensor": name}
    if isinstance(value, np.ndarray):
        plain = torch.from_numpy(value.astype(np.int64 if value.dtype.kind == "u" else value.dtype))
        return {"$array": _pack(plain, name, tensors), "of": str(value.dtype)}
    if isinstance(value, np.generic):
        return _pack(value.item(), name, tensors)
    if isinstance(value, dict):
        return {"$dict": [[_pack(k, name, tensors), _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise StoreError(f"cannot save {name}: a {type(value).__name__}; plain numbers, text, lists, dicts and tensors can")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$array" in value:
        return _unpack(value["$array"], tensors).numpy().astype(value["of"])
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["$dict"]}

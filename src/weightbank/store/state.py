"""Nested state (of models, optimizers, schedulers, generators) in one `.safetensors` file, without pickle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, StoreError
from weightbank.store.arrays import bytes_of, load_arrays, save_arrays

_ARRAYS = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
_ARRAYS |= {"float16", "float32", "float64"}


def save_state(path: str | Path, state: Any, kind: str) -> None:
    """Save dicts, lists, tuples, numbers, strings, None, tensors and numpy arrays, atomically.

    Tensors that share memory come back as equal, separate ones. Raises `StoreError` naming any value of another type.
    """
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_pack(state, "state", tensors), separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: cannot save this state: {error}") from error
    save_arrays(path, tensors, {"weightbank": kind, "state": text, "crc32": _checksum(text, tensors)})


def load_state(path: str | Path, kind: str) -> Any:
    """The inverse of `save_state`; `CorruptError` for a file that is not of this `kind`, or damaged anywhere."""
    tensors, metadata = load_arrays(path)
    if metadata.get("weightbank") != kind:
        raise CorruptError(f"{path}: holds {metadata.get('weightbank', 'something else')!r}, wanted {kind!r}")
    try:
        if metadata["crc32"] != _checksum(metadata["state"], tensors):
            raise CorruptError(f"{path}: does not match its checksum")
        return _unpack(json.loads(metadata["state"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise CorruptError(f"{path}: its state cannot be read: {error!r}") from error


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    total = crc32(text.encode())
    for name in sorted(tensors):
        total = crc32(bytes_of(tensors[name].detach().to("cpu").contiguous()), total)
    return f"{total:08x}"


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        while name in tensors:
            name += "'"
        tensors[name] = value.detach()
        return {"$tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.name in _ARRAYS:
        plain = value.astype(np.int64 if value.dtype.kind == "u" else value.dtype.newbyteorder("="), order="C")
        return {"$array": _pack(torch.from_numpy(plain), name, tensors), "of": value.dtype.name}
    if isinstance(value, np.generic):
        return _pack(value.item(), name, tensors)
    if isinstance(value, dict):
        return {"$dict": [[_pack(k, name, tensors), _pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if type(value) in (list, tuple):
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
        if value["of"] not in _ARRAYS:
            raise ValueError(f"an array of {str(value['of'])[:80]}")
        return _unpack(value["$array"], tensors).numpy().astype(value["of"])
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["$dict"]}

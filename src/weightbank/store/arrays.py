"""Fixed arrays in ordinary `.safetensors` files: written in pieces with bounded memory, replaced in one step."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightbank.errors import CorruptError, StoreError
from weightbank.store.media import FileBlob, allocate, errors_named, sync_directory

_NAMES = {  # in the order of the safetensors library: large items first, so that all are aligned
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ORDER = {dtype: place for place, dtype in enumerate(_NAMES)}
_REPLACED = 100
"""How often a file may be replaced while it is being opened."""


class ArrayWriter:
    """Write one `.safetensors` file array by array or piece by piece; it appears under its name only when whole.

    Use as a context manager: leaving it normally syncs the file and renames it over `path`; leaving it by an error
    removes the partial file and leaves whatever was at `path` as it was. Raises `StoreError` for dtypes and names that
    such files do not have, `CapacityError` when there is no room.
    """

    def __init__(
        self, path: Path, arrays: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._places: dict[str, tuple[int, torch.dtype, int]] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        for name, (dtype, _) in arrays.items():
            if dtype not in _NAMES or name == "__metadata__":
                raise StoreError(f"{path}: no '{name}' of {dtype} in a .safetensors file; convert or rename it")
        end = 0
        for name, (dtype, shape) in sorted(arrays.items(), key=lambda item: (_ORDER[item[1][0]], item[0])):
            length = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + length]}
            self._places[name] = end, dtype, math.prod(shape)
            end += length
        try:
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise StoreError(f"{path}: a name cannot be written in UTF-8: {error}") from error
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        with errors_named(f"{path.parent}: cannot make this directory"):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._blob = FileBlob(self._partial, writable=True)
        try:
            self._blob.trim(0)
            self._blob.reserve(self._start + end)
            self._blob.write(0, len(text).to_bytes(8, "little") + text)
        except StoreError:
            self._drop()
            raise

    def write(self, name: str, data: Tensor, at: int = 0) -> None:
        """Write a tensor's numbers into array `name`, starting at flat index `at`; `StoreError` if they do not fit."""
        start, dtype, count = self._places[name]
        if data.dtype != dtype or not 0 <= at <= at + data.numel() <= count:
            raise StoreError(
                f"{self.path}: {data.numel()} numbers in {data.dtype} for places {at} on of '{name}', "
                f"which has {count} in {dtype}"
            )
        data = data.detach().to("cpu").contiguous().reshape(-1)
        self._blob.write(self._start + start + at * data.element_size(), bytes_of(data))

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._blob.sync()
                with errors_named(str(self.path)):
                    self._partial.replace(self.path)
                    sync_directory(self.path.parent)
        finally:
            self._drop()

    def _drop(self) -> None:
        self._blob.close()
        self._partial.unlink(missing_ok=True)


def bytes_of(data: Tensor) -> UInt8[np.ndarray, " B"]:
    """The bytes of a contiguous CPU tensor, no copy."""
    flat = data.reshape(-1).as_strided((data.numel(),), (1,))  # with one number or none, strides can be anything
    numbers: UInt8[np.ndarray, " B"] = flat.view(torch.uint8).numpy()
    return numbers


def _typed(raw: UInt8[np.ndarray, "..."], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)


def save_arrays(path: str | Path, arrays: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write whole tensors and text metadata to one `.safetensors` file, atomically."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in arrays.items()}
    with ArrayWriter(Path(path), shapes, metadata or {}) as file:
        for name, tensor in arrays.items():
            file.write(name, tensor)


class ArrayFile:
    """A `.safetensors` file opened for reading: shapes and metadata at once, numbers when asked for.

    The header is checked by the safetensors library, so offsets lie inside the file and cover it without holes.
    A file that others replace meanwhile is read whole, the old one or the new one. Raises `CorruptError` for anything
    that is not such a file, `StoreError` where there is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        for _ in range(_REPLACED):
            if not self.path.is_file():
                raise StoreError(f"{self.path}: no such file")
            self._blob = FileBlob(self.path, writable=False)
            try:
                self._look()
                if self._current():
                    return
            except CorruptError:
                if self._current():
                    self.close()
                    raise
            self.close()
        raise StoreError(f"{self.path}: was replaced {_REPLACED} times while it was opened; try again later")

    def _look(self) -> None:
        """Find out what is in the file; the safetensors library opens it by name, so look whether that was this one."""
        try:
            with safe_open(self.path, framework="pt") as opened:
                self.metadata: dict[str, str] = dict(opened.metadata() or {})
                described = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                self.shapes = {name: tuple(part.get_shape()) for name, part in described.items()}
                self.dtypes = {name: _DTYPES[part.get_dtype()] for name, part in described.items()}
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise CorruptError(f"{self.path}: not a whole .safetensors file of known numbers: {error}") from error
        if any(math.prod(max(1, length) for length in shape) >= 2**62 for shape in self.shapes.values()):
            raise CorruptError(f"{self.path}: an array has a shape that no tensor can have")
        head = np.empty(8, np.uint8)
        self._blob.read_into(0, head)
        length = int.from_bytes(head.tobytes(), "little")
        if 8 + length > self._blob.size:
            raise CorruptError(f"{self.path}: its header leaves the file")
        text = allocate(length, str(self.path))
        self._blob.read_into(8, text)
        try:
            header = json.loads(text.tobytes())
            self._offsets = {name: 8 + text.size + header[name]["data_offsets"][0] for name in self.shapes}
        except (ValueError, KeyError) as error:
            raise CorruptError(f"{self.path}: its header is not that of these arrays: {error!r}") from error

    def _current(self) -> bool:
        """Whether the file that is open still has this name: `safe_open` saw the same one then."""
        try:
            there = self.path.stat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self._blob.identity

    def read(self, name: str) -> Tensor:
        """One whole array, as a fresh tensor."""
        shape, dtype = self._shape(name), self.dtypes[name]
        raw = allocate(math.prod(shape) * dtype.itemsize, f"{self.path}: {name}")
        self._blob.read_into(self._offsets[name], raw)
        return _typed(raw, dtype, shape)

    def map(self, name: str) -> Tensor:
        """One whole array where it lies in the file: read page by page as it is used, shared with other processes.

        Changing the tensor changes a private copy, never the file.
        """
        shape, dtype = self._shape(name), self.dtypes[name]
        length = math.prod(shape) * dtype.itemsize
        if length == 0:
            return torch.empty(shape, dtype=dtype)
        with self._blob.opened() as file:  # not by name: another file may have it by now
            raw = np.memmap(file, np.uint8, "c", self._offsets[name], (length,))
        return _typed(raw, dtype, shape)

    def read_columns(self, name: str, start: int, stop: int, *, rows: range | None = None) -> Tensor:
        """Columns start..stop of (some rows of) a two-dimensional array, shape (R, W)."""
        shape, item = self._shape(name), self.dtypes[name].itemsize
        rows = range(shape[0]) if rows is None and shape else rows or range(0)
        good = len(shape) == 2 and 0 <= start <= stop <= shape[1] and rows.step > 0
        if not good or (len(rows) and not 0 <= rows[0] <= rows[-1] < shape[0]):
            raise StoreError(f"{self.path}: columns {start} to {stop} of {rows} asked for; '{name}' has shape {shape}")
        width = (stop - start) * item
        raw = allocate(len(rows) * width, f"{self.path}: {name}").reshape(len(rows), width)
        offset = self._offsets[name] + (rows.start * shape[1] + start) * item
        self._blob.read_strided(offset, rows.step * shape[1] * item, raw)
        return _typed(raw, self.dtypes[name], (len(rows), stop - start))

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise CorruptError(f"{self.path}: no array '{name}'; there are: {', '.join(self.shapes)}")
        return self.shapes[name]

    def close(self) -> None:
        """Release the file."""
        self._blob.close()

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def load_arrays(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a `.safetensors` file."""
    with ArrayFile(path) as file:
        return {name: file.read(name) for name in file.shapes}, file.metadata

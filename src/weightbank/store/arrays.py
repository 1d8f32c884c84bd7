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
from weightbank.store.media import FileBlob, sync_directory

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class ArrayWriter:
    """Write one `.safetensors` file array by array or piece by piece; it appears under its name only when whole.

    Use as a context manager: leaving it normally syncs the file and renames it over `path`; leaving it by an error
    removes the partial file and leaves whatever was at `path` as it was.
    """

    def __init__(
        self, path: Path, arrays: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._offsets: dict[str, int] = {}
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        end = 0
        for name, (dtype, shape) in arrays.items():
            length = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + length]}
            self._offsets[name] = end
            end += length
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
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
        """Write a tensor's numbers into array `name`, starting at flat index `at`."""
        data = data.detach().to("cpu").contiguous().reshape(-1)
        self._blob.write(self._start + self._offsets[name] + at * data.element_size(), bytes_of(data))

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop()
            return
        self._blob.sync()
        self._blob.close()
        self._partial.replace(self.path)
        sync_directory(self.path.parent)

    def _drop(self) -> None:
        self._blob.close()
        self._partial.unlink(missing_ok=True)


def bytes_of(data: Tensor) -> UInt8[np.ndarray, " B"]:
    """The bytes of a contiguous CPU tensor, no copy."""
    flat: UInt8[np.ndarray, " B"] = data.reshape(-1).view(torch.uint8).numpy()
    return flat


def save_arrays(path: str | Path, arrays: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write whole tensors and text metadata to one `.safetensors` file, atomically."""
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in arrays.items()}
    with ArrayWriter(Path(path), shapes, metadata or {}) as file:
        for name, tensor in arrays.items():
            file.write(name, tensor)


class ArrayFile:
    """A `.safetensors` file opened for reading: shapes and metadata at once, numbers when asked for.

    The header is checked by the safetensors library, so offsets lie inside the file and cover it without holes.
    Raises `CorruptError` for anything that is not such a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"{self.path}: no such file")
        try:
            with safe_open(self.path, framework="pt") as opened:
                self.metadata: dict[str, str] = dict(opened.metadata() or {})
                names = list(opened.keys())
                described = {name: opened.get_slice(name) for name in names}
                self.shapes = {name: tuple(part.get_shape()) for name, part in described.items()}
                self.dtypes = {name: _DTYPES[part.get_dtype()] for name, part in described.items()}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CorruptError(f"{self.path}: not a whole .safetensors file: {error}") from error
        self._blob = FileBlob(self.path, writable=False)
        head = np.empty(8, np.uint8)
        self._blob.read_into(0, head)
        text = np.empty(int.from_bytes(head.tobytes(), "little"), np.uint8)
        self._blob.read_into(8, text)
        header = json.loads(text.tobytes())
        self._offsets = {name: 8 + text.size + header[name]["data_offsets"][0] for name in names}

    def read(self, name: str) -> Tensor:
        """One whole array, as a fresh tensor."""
        if name not in self.shapes:
            raise CorruptError(f"{self.path}: no array '{name}'; there are: {', '.join(self.shapes)}")
        out = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        if out.numel():
            self._blob.read_into(self._offsets[name], bytes_of(out))
        return out

    def read_columns(self, name: str, start: int, stop: int, *, rows: range | None = None) -> Tensor:
        """Columns start..stop of (some rows of) a two-dimensional array, shape (R, W)."""
        count, width = self.shapes[name]
        rows = range(count) if rows is None else rows
        out = torch.empty(len(rows), stop - start, dtype=self.dtypes[name])
        item = out.element_size()
        offset = self._offsets[name] + (rows.start * width + start) * item
        raw = out.view(torch.uint8).numpy().reshape(len(rows), -1)
        self._blob.read_strided(offset, rows.step * width * item, raw)
        return out

    def close(self) -> None:
        """Release the file."""
        self._blob.close()

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        blob = getattr(self, "_blob", None)
        if blob is not None:
            blob.close()


def load_arrays(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a `.safetensors` file."""
    with ArrayFile(path) as file:
        return {name: file.read(name) for name in file.shapes}, file.metadata

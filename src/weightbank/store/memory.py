"""A log in ordinary memory (DRAM, memory mode, a CXL node): same code path, gone with the process."""

import numpy as np
from jaxtyping import UInt8

from weightbank.errors import CapacityError, CorruptError
from weightbank.store.media import Bytes


class ArrayBlob:
    """Bytes in a fixed array, or one that grows; `name` is for errors."""

    def __init__(self, name: str, data: Bytes | None = None) -> None:
        self._name = name
        self._fixed = data is not None
        self._data: Bytes = np.empty(0, np.uint8) if data is None else data

    @property
    def size(self) -> int:
        return self._data.size

    def read_into(self, offset: int, out: Bytes) -> None:
        self._check(offset + out.size)
        out[:] = self._data[offset : offset + out.size]

    def read_strided(self, offset: int, stride: int, out: UInt8[np.ndarray, "R B"]) -> None:
        rows, width = out.shape
        if rows:
            self._check(offset + (rows - 1) * stride + width)
            view = np.lib.stride_tricks.as_strided(self._data[offset:], (rows, width), (stride, 1), writeable=False)
            out[:] = view

    def write(self, offset: int, data: Bytes | bytes) -> None:
        source = np.frombuffer(data, np.uint8)
        self._check(offset + source.size)
        self._data[offset : offset + source.size] = source

    def reserve(self, size: int) -> None:
        if size <= self.size:
            return
        if self._fixed:
            raise CapacityError(f"{self._name}: {size:,} bytes wanted, the device has {self.size:,} for this part")
        try:
            grown = np.zeros(size, np.uint8)
        except (MemoryError, ValueError) as error:  # the latter beyond 2^63
            raise CapacityError(f"{self._name}: no memory for {size:,} bytes; keep the rows in a directory") from error
        grown[: self.size] = self._data
        self._data = grown

    def trim(self, size: int) -> None:
        """What lies beyond is forgotten; its memory goes when the blob grows again."""
        self._data = self._data[: max(0, size)]

    def sync(self) -> None:
        """Memory does not survive its process; nothing to do."""

    def close(self) -> None:
        """Kept until the log is dropped."""

    def _check(self, end: int) -> None:
        if end > self.size:
            raise CorruptError(f"{self._name}: ends at byte {self.size:,}, wanted up to {end:,}")


class Memory:
    """A place for blobs in this process's memory."""

    staged = False
    limit: int | None = None

    def __init__(self) -> None:
        self._blobs: dict[str, ArrayBlob] = {}

    def __repr__(self) -> str:
        return "memory"

    def exists(self, name: str) -> bool:
        return name in self._blobs

    def open(self, name: str, *, writable: bool, capacity: int = 0) -> ArrayBlob:
        return self._blobs.setdefault(name, ArrayBlob(name))

    def read(self, name: str, limit: int) -> bytes:
        blob = self._blobs[name]
        out = np.empty(blob.size, np.uint8)
        blob.read_into(0, out)
        return out.tobytes()

    def replace(self, name: str, data: bytes) -> None:
        self._blobs[name] = blob = ArrayBlob(name)
        blob.reserve(len(data))
        blob.write(0, data)

    def remove(self, name: str) -> None:
        self._blobs.pop(name, None)

    def lock(self) -> None:
        """One process, one owner."""

    def unlock(self) -> None:
        """One process, one owner."""

    def sizes(self) -> dict[str, int]:
        return {name: blob.size for name, blob in self._blobs.items()}

"""Two alternating slots for running moments, so that one valid state exists at any moment."""

import struct

import numpy as np
import torch
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError
from weightbank.store.arrays import bytes_of
from weightbank.store.media import Medium, allocate
from weightbank.types import Flat

_HEAD = struct.Struct("<4sHHQQqII20xI")
assert _HEAD.size == 64
_MAGIC, _VERSION, _START = b"WBMO", 1, 4096
_NAMES = ("moments-a.bin", "moments-b.bin")


class MomentSlots:
    """Saved states (count, mean offset, scatter) of `Moments` over `size` weights."""

    def __init__(self, medium: Medium, size: int) -> None:
        self._medium, self._size = medium, size
        self._next = 0
        self._bytes = _START + 8 * size

    def reserve(self) -> None:
        """Make room for both slots, or raise `CapacityError`, so that saving cannot fail for want of it."""
        for name in _NAMES:
            blob = self._medium.open(name, writable=True, capacity=self._bytes)
            try:
                blob.reserve(self._bytes)
            finally:
                blob.close()

    def save(self, count: int, step: int, mean: Flat, scatter: Flat | None, *, durable: bool) -> None:
        """Overwrite the older slot: its header is cleared first and written last."""
        blob = self._medium.open(_NAMES[self._next], writable=True, capacity=self._bytes)
        try:
            blob.reserve(self._bytes)
            blob.write(0, bytes(_HEAD.size))
            first = bytes_of(mean)
            second = np.empty(0, np.uint8) if scatter is None else bytes_of(scatter)
            blob.write(_START, first)
            blob.write(_START + first.size, second)
            if durable:
                blob.sync()
            flags = 0 if scatter is None else 1
            head = _HEAD.pack(_MAGIC, _VERSION, flags, count, self._size, step, crc32(first), crc32(second), 0)[:-4]
            blob.write(0, head + crc32(head).to_bytes(4, "little"))
            if durable:
                blob.sync()
        finally:
            blob.close()
        self._next = 1 - self._next

    def newest(self, at_most: int) -> tuple[int, int, Flat, Flat | None] | None:
        """The valid state (count, step, mean, scatter) with the largest count up to `at_most`, if there is one."""
        best: tuple[int, int, Flat, Flat | None] | None = None
        for index, name in enumerate(_NAMES):
            state = self._load(name)
            if state is not None and state[0] <= at_most and (best is None or state[0] > best[0]):
                best = state
                self._next = 1 - index
        return best

    def forget_after(self, count: int) -> None:
        """Invalidate states of more than `count` iterates."""
        for name in _NAMES:
            state = self._load(name)
            if state is not None and state[0] > count:
                blob = self._medium.open(name, writable=True, capacity=self._bytes)
                try:
                    blob.write(0, bytes(_HEAD.size))
                    blob.sync()
                finally:
                    blob.close()

    def _load(self, name: str) -> tuple[int, int, Flat, Flat | None] | None:
        if not self._medium.exists(name):
            return None
        blob = self._medium.open(name, writable=False)
        try:
            raw = np.empty(_HEAD.size, np.uint8)
            blob.read_into(0, raw)
            data = raw.tobytes()
            magic, version, flags, count, size, step, first_crc, second_crc, crc = _HEAD.unpack(data)
            if magic != _MAGIC or crc32(data[:-4]) != crc or version != _VERSION or size != self._size:
                return None
            length = 4 * size
            if blob.size < _START + length * (1 + flags % 2):
                return None
            first = allocate(length, name)
            second = allocate(length * (flags % 2), name)
            blob.read_into(_START, first)
            blob.read_into(_START + first.size, second)
            if crc32(first) != first_crc or crc32(second) != second_crc:
                return None
        except CorruptError:
            return None
        finally:
            blob.close()
        scatter = torch.from_numpy(second.view(np.float32)) if flags % 2 else None
        return count, step, torch.from_numpy(first.view(np.float32)), scatter

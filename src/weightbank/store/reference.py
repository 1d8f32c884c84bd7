"""The one float32 row that all rows of a log are relative to."""

import torch
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError
from weightbank.store.arrays import bytes_of
from weightbank.store.media import Medium
from weightbank.types import Flat

_NAME, _HEAD = "reference.bin", 64


def write_reference(medium: Medium, reference: Flat) -> None:
    """Store the reference row: a 64-byte text line with size and checksum, then its numbers."""
    data = bytes_of(reference.detach().to("cpu", torch.float32).contiguous())
    head = f"WBRF 1 {len(reference)} {crc32(data):08x}\n".encode().ljust(_HEAD)
    medium.replace(_NAME, head + data.tobytes())


def read_reference(medium: Medium, size: int) -> Flat | None:
    """The reference row, shape (P,), or None if there is none yet; `CorruptError` if it is damaged."""
    if not medium.exists(_NAME):
        return None
    data = bytearray(medium.read(_NAME, _HEAD + 4 * size))
    head, body = data[:_HEAD].split(), memoryview(data)[_HEAD:]
    good = len(body) == 4 * size and head[:3] == [b"WBRF", b"1", str(size).encode()]
    if not good or head[3] != f"{crc32(body):08x}".encode():
        raise CorruptError(f"{medium!r}: {_NAME} is damaged; the rows cannot be read without it")
    return torch.frombuffer(data, dtype=torch.float32, offset=_HEAD)

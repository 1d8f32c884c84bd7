"""The one float32 row that all rows of a log are relative to."""

import numpy as np
import torch
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, LayoutError
from weightbank.store.arrays import bytes_of
from weightbank.store.media import Medium, allocate
from weightbank.types import Flat

_NAME, _HEAD = "reference.bin", 64


def write_reference(medium: Medium, reference: Flat, size: int) -> None:
    """Store the reference row: a 64-byte text line with size and checksum, then its numbers."""
    if tuple(reference.shape) != (size,):
        raise LayoutError(f"a reference of shape {tuple(reference.shape)} came; this log has rows of ({size},)")
    data = bytes_of(reference.detach().to("cpu", torch.float32).contiguous())
    medium.replace(_NAME, _head(size, crc32(data)) + data.tobytes())


def read_reference(medium: Medium, size: int) -> Flat | None:
    """The reference row, shape (P,), or None if there is none yet; `CorruptError` if it is damaged."""
    if not medium.exists(_NAME):
        return None
    blob = medium.open(_NAME, writable=False)
    try:
        if blob.size == _HEAD + 4 * size:
            head, body = np.empty(_HEAD, np.uint8), allocate(4 * size, f"{medium!r}: {_NAME}")
            blob.read_into(0, head)
            blob.read_into(_HEAD, body)
            if head.tobytes() == _head(size, crc32(body)):
                return torch.from_numpy(body.view(np.float32))
    finally:
        blob.close()
    raise CorruptError(f"{medium!r}: {_NAME} is damaged; the rows cannot be read without it")


def _head(size: int, checksum: int) -> bytes:
    return f"WBRF 1 {size} {checksum:08x}\n".encode().ljust(_HEAD)

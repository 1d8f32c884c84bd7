"""A row's bytes and their checksum, made block by block while a block is in the cache."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from zlib_ng.zlib_ng import crc32

from weightbank.formats import Format
from weightbank.store.media import Bytes
from weightbank.types import Flat

Prepare: TypeAlias = Callable[[slice, Flat], None]
"""Fills in some columns of a row just before they are read."""

_BLOCK = 131_072  # weights at a time: a quarter of a megabyte


def encode(format: Format, size: int, row: Flat | None, buffer: Bytes, prepare: Prepare | None = None) -> int:
    """Write the bytes of `row` into `buffer` and return their crc32; row None: `prepare` makes float32 in place."""
    out = torch.from_numpy(buffer)
    values = torch.from_numpy(buffer.view(np.float32)) if row is None else row
    width = max(1, _BLOCK // format.columns) * format.columns
    checksum = 0
    for start in range(0, size, width):
        columns = slice(start, min(start + width, size))
        if prepare is not None:
            prepare(columns, values)
        offset, length = format.span(columns.start, columns.stop)
        if row is not None:
            format.encode_row(row[columns], out[offset : offset + length])
        checksum = crc32(buffer[offset : offset + length], checksum)
    return checksum

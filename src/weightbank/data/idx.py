"""IDX files, the format of MNIST and its family (LeCun, Cortes, Burges; http://yann.lecun.com/exdb/mnist).

A file is two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian uint32, and the values
in row-major order, big-endian; often the whole is compressed with gzip.
"""

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weightbank.data.images import LIMIT, ImageData, from_arrays
from weightbank.errors import DataError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 8
MAX_DEFLATE_RATIO = 1032  # one deflate block of the longest matches; https://zlib.net/zlib_tech.html
CHUNK = 2**20


def mnist_family(
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int = LIMIT,
) -> ImageData:
    """Read the four files of MNIST, Fashion-MNIST, KMNIST and the like: (N, 1, H, W) in [0, 1].

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
            `t10k-labels-idx1-ubyte`, each plain or with `.gz` (`train-images.idx3-ubyte` will do, too).
        name: what reports call it; the folder's name by default.
        classes: class names; "0", "1", ... by default.
        limit: the most bytes one file may hold, uncompressed.

    Raises:
        DataError: a file is missing, is not IDX, is not the uint8 it should be, or does not match the others.
    """
    folder = Path(folder)
    train, test = (
        (
            _read_ubyte(folder, f"{part}-images", dimensions=3, limit=limit),
            _read_ubyte(folder, f"{part}-labels", dimensions=1, limit=limit),
        )
        for part in ("train", "t10k")
    )
    return from_arrays(train, test, name=name or folder.resolve().name, classes=classes)


def read_idx(path: str | os.PathLike[str], *, limit: int = LIMIT) -> Tensor:
    """Read one IDX file, plain or compressed with gzip, into a tensor of the shape and type its header gives.

    The header is checked against the bytes that are there before memory is taken: never more than `limit` bytes.

    Raises:
        DataError: not an IDX file, more or fewer bytes than the header says, damaged gzip, or more than `limit` bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file; wanted an IDX file, plain or .gz")
    with path.open("rb") as file:
        present = os.fstat(file.fileno()).st_size
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not zipped:
            return _parse(file, path, present=present, most=present, limit=limit)
        with gzip.GzipFile(fileobj=file) as unzipped:
            return _parse(unzipped, path, present=None, most=present * MAX_DEFLATE_RATIO, limit=limit)


def _read_ubyte(folder: Path, stem: str, *, dimensions: int, limit: int) -> Tensor:
    names = [f"{stem}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has none of {', '.join(names)}; wanted the folder with the four IDX files")
    values = read_idx(path, limit=limit)
    if values.ndim != dimensions or values.dtype != torch.uint8:
        raise DataError(
            f"{path} holds {values.dtype} of shape {tuple(values.shape)}; wanted torch.uint8 in {dimensions} dimensions"
        )
    return values


def _parse(stream: io.BufferedIOBase, path: Path, *, present: int | None, most: int, limit: int) -> Tensor:
    """Read a header and its values; `present` is the size of the stream if known, and `most` what it can be at most."""
    head = _read(stream, 4, path)
    kind, dimensions = head[2], head[3]
    if head[:2] != b"\0\0" or kind not in TYPES or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DataError(
            f"{path} starts with the bytes {head.hex(' ')}; an IDX file starts with 00 00, a type among "
            f"{', '.join(f'{known:02x}' for known in TYPES)} and 1 to {MAX_DIMENSIONS} dimensions"
        )
    shape = struct.unpack(f">{dimensions}I", _read(stream, 4 * dimensions, path))
    dtype = np.dtype(TYPES[kind])
    header, size = 4 + 4 * dimensions, math.prod(shape) * dtype.itemsize
    promise = f"{path} promises {size:,} bytes of shape {shape} after a header of {header}"
    if size == 0:
        raise DataError(f"{promise}; wanted at least one value")
    if present is not None and present != header + size:
        raise DataError(f"{promise} but has {present - header:,}; the file is damaged, fetch it again")
    if header + size > most:
        raise DataError(f"{promise}, more than gzip can keep in {most // MAX_DEFLATE_RATIO:,} bytes; fetch it again")
    if size > limit:
        raise DataError(f"{promise}, more than the limit of {limit:,}; give limit={size} if that is meant")
    values = np.empty(shape, dtype)
    _read_into(stream, values.reshape(-1).view(np.uint8).data, path)
    if _read(stream, 1, path, short=True):
        raise DataError(f"{promise} but goes on after them; the file is damaged, fetch it again")
    if not dtype.isnative:
        values = values.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return torch.from_numpy(values)


def _read(stream: io.BufferedIOBase, count: int, path: Path, *, short: bool = False) -> bytes:
    """Read `count` bytes; fewer at the end of the stream if `short`."""
    buffer = bytearray(count)
    return bytes(buffer[: _read_into(stream, memoryview(buffer), path, short=short)])


def _read_into(stream: io.BufferedIOBase, buffer: memoryview, path: Path, *, short: bool = False) -> int:
    done = 0
    while done < len(buffer):
        try:
            count = stream.readinto(buffer[done : done + CHUNK])  # GzipFile makes a copy of what it reads
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path} cannot be read beyond {done:,} of the next {len(buffer):,} bytes: {error}; fetch it again"
            ) from error
        if not count:
            break
        done += count
    if done < len(buffer) and not short:
        raise DataError(f"{path} ends after {done:,} of the next {len(buffer):,} bytes; fetch it again")
    return done

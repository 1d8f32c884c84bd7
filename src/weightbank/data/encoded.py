"""Rows of encoded images (JPEG, PNG, ...) with labels, decoded into one array.

The bytes may be anybody's: only the formats below are tried, no path named in a row is opened, every image must have
the size of the first, and the array is made once, when its size is known to be within the limit.
"""

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor

from weightbank.data.columns import Columns
from weightbank.data.extras import require
from weightbank.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
GREY = ("1", "L", "LA")
COLOUR = (*GREY, "P", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_LABEL = 2**31 - 1


class Decoded(NamedTuple):
    """Images or what else was encoded, labels, and what the split column says in each row (nothing without one)."""

    x: Shaped[Tensor, "N C H W"]
    y: Int64[Tensor, " N"]
    splits: list[str | None]

    def part(self, split: str) -> tuple[Shaped[Tensor, "M C H W"], Int64[Tensor, " M"]]:
        """Return the rows of one split, a copy."""
        rows = torch.tensor([row for row, value in enumerate(self.splits) if value == split], dtype=torch.int64)
        return self.x[rows], self.y[rows]


def decode(rows: Iterable[Mapping[str, Any]], columns: Columns, count: int, *, source: str, limit: int) -> Decoded:
    """Decode `count` rows, each an image of the size of the first; grey ones if the first is grey, else RGB.

    Holds the array (one byte per pixel), the labels, and one row at a time.

    Raises:
        DataError: more or fewer rows than `count`, a row without bytes or label, an image that cannot be decoded, has
            another size, or colour where the first has none, or more than `limit` bytes of pixels in all.
    """
    pillow = require("PIL.Image", f"decoding the images of {source}")
    if count < 1:
        raise DataError(f"{source} has {count:,} rows; wanted at least one")
    pixels: NDArray[Any] | None = None
    read = TableRows(columns, count, source)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        for number, row, where in read.each(rows):
            picture = _open(pillow, columns.encoded(row), where)
            if pixels is None:
                pixels = _allocate(picture, count, source, limit)
            _fill(pixels[number], picture, where)
    assert pixels is not None  # there is a row, and so a first picture
    return Decoded(torch.from_numpy(pixels), read.targets, read.splits)


class TableRows:
    """The labels and splits of the `count` rows that a table promises, collected while its rows go by."""

    def __init__(self, columns: Columns, count: int, source: str) -> None:
        self.columns, self.count, self.source = columns, count, source
        self.labels: list[int] = []
        self.splits: list[str | None] = []

    def each(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any], str]]:
        """Number, row, and how to name it; `DataError` for more or fewer rows than promised, or no label."""
        for number, row in enumerate(rows):
            where = f"{self.source}, row {number:,}"
            if number == self.count:
                raise DataError(f"{self.source} promises {self.count:,} rows and has more; the file is damaged")
            self.labels.append(checked_label(row[self.columns.label], where))
            if self.columns.split is not None:
                self.splits.append(row[self.columns.split])
            yield number, row, where
        if len(self.labels) < self.count:
            has = f"{len(self.labels):,}"
            raise DataError(f"{self.source} promises {self.count:,} rows and has {has}; the file is damaged")

    @property
    def targets(self) -> Int64[Tensor, " N"]:
        """The labels as targets."""
        return torch.tensor(self.labels, dtype=torch.int64)


def checked_label(label: int | None, where: str) -> int:
    """Return a label that can be one; `where` names its row in the DataError if it cannot."""
    if label is None or not 0 <= label <= MAX_LABEL:
        raise DataError(f"{where} has the label {label}; wanted 0 to {MAX_LABEL:,}")
    return label


def _open(pillow: Any, encoded: bytes | None, where: str) -> Any:
    """Read the header of an image; its pixels are still encoded."""
    if encoded is None:
        raise DataError(f"{where} has no image bytes; a path alone is not followed: store the bytes in the table")
    try:
        return pillow.open(io.BytesIO(encoded), formats=FORMATS)
    except Exception as error:  # decoders of foreign bytes raise what they like
        raise DataError(
            f"{where} is no image of {', '.join(FORMATS)} that can be read: {_first_line(error)}"
        ) from error


def _allocate(picture: Any, count: int, source: str, limit: int) -> NDArray[Any]:
    width, height = picture.size
    shape = (count, 1 if picture.mode in GREY else 3, height, width)
    size = count * shape[1] * height * width
    if size > limit:
        raise DataError(
            f"{source} has {size:,} bytes of pixels, {shape} by its first row, more than the limit of {limit:,}; "
            f"give limit={size} if that is meant"
        )
    return np.empty(shape, np.uint8)


def _fill(out: NDArray[Any], picture: Any, where: str) -> None:
    """Decode one image into (channels, height, width)."""
    channels, height, width = out.shape
    if picture.size != (width, height):
        raise DataError(
            f"{where} is {picture.size[0]} x {picture.size[1]} pixels, the first row is {width} x {height}; wanted one "
            "size: resize the images first"
        )
    modes = GREY if channels == 1 else COLOUR
    if picture.mode not in modes:
        raise DataError(
            f"{where} has the colour mode {picture.mode}; wanted {' or '.join(modes)}, as the first row has it: "
            "convert the images to one mode first"
        )
    try:
        values = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # decoders of foreign bytes raise what they like
        raise DataError(f"{where} cannot be decoded: {_first_line(error)}") from error
    out[...] = values if channels == 1 else values.transpose(2, 0, 1)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]

"""Recordings with labels, as log-mel spectrograms: images that any network for images takes."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightbank.data.columns import Columns
from weightbank.data.encoded import Decoded, TableRows
from weightbank.data.folders import Clip, clips
from weightbank.data.images import LIMIT, ImageData, from_arrays
from weightbank.data.mel import LogMel
from weightbank.data.parquet import named_after, read_parts
from weightbank.data.wav import read_wav
from weightbank.errors import DataError


def recordings(
    path: str | os.PathLike[str],
    *,
    front: LogMel | None = None,
    split: str | None = None,
    audio: str | None = None,
    label: str | None = None,
    name: str | None = None,
    limit: int = LIMIT,
) -> ImageData:
    """Read WAV recordings and labels as spectrograms (N, 1, frames, bands) of levels in [0, 1].

    Args:
        path: a folder of WAV files as `clips` takes it, or Parquet as `parquet_images` takes it, with a column of WAV
            bytes (needs `pip install weightbank[hub]`).
        front: what makes spectrograms of sounds; `LogMel()` by default, 61 moments x 20 bands of one second.
        split: the name of the split column of one Parquet file; "split" by default.
        audio: its column of recordings; by default the one Hugging Face's notes call audio, or `audio`, or the only
            one of bytes.
        label: its column of integer labels, found as by `parquet_images`.
        name: what reports call it; the name of the folder or file by default.
        limit: the most bytes of float32 levels of one split (of all rows where one Parquet file has both).

    Raises:
        DataError: no recordings, one that is no WAV file of PCM samples, several sampling rates, more bytes than
            `limit`, or what is wrong with a Parquet file.
    """
    path, front = Path(path), front or LogMel()
    name = name or named_after(path)
    found = clips(path)
    if found is None:
        if path.is_dir() and not [*path.glob("*.parquet"), *path.glob("data/*.parquet")]:
            raise DataError(
                f"{path} has no recordings; wanted train/CLASS/*.wav and test/CLASS/*.wav, CLASS/*.wav with "
                "testing_list.txt, or .parquet files"
            )
        decoder = partial(_decode_rows, front=front, limit=limit)
        parts = read_parts(path, decoder, split=split, value=audio, label=label, kind="audio")
        return from_arrays(parts.train, parts.test, name=name, classes=parts.classes)
    if (split, audio, label) != (None, None, None):
        raise DataError(f"{path} is a folder of WAV files; split=, audio= and label= are for Parquet")
    train, test = (_decode_clips(part, path, front, limit) for part in (found.train, found.test))
    return from_arrays(train, test, name=name, classes=found.classes)


class _Spectrograms:
    """An array of `count` spectrograms that is made when the first one is known."""

    def __init__(self, front: LogMel, count: int, source: str, limit: int) -> None:
        if count < 1:
            raise DataError(f"{source} has {count:,} recordings; wanted at least one")
        shape = (count, 1, front.frames, front.bands)
        if (size := 4 * count * front.frames * front.bands) > limit:
            raise DataError(
                f"{source} makes {size:,} bytes of levels, {shape}, more than the limit of {limit:,}; give "
                f"limit={size} if that is meant"
            )
        self.front, self.shape = front, shape
        self.rate: int | None = None
        self.levels = torch.empty(0)

    def put(self, number: int, encoded: bytes, where: str) -> None:
        """Decode one recording into its place."""
        sound = read_wav(encoded, where, seconds=self.front.seconds)
        if self.rate is None:
            self.levels = torch.empty(self.shape)
        elif self.rate != sound.rate:
            raise DataError(
                f"{where} has {sound.rate:,} samples per second, the first recording {self.rate:,}; wanted one rate: "
                "resample them first"
            )
        self.rate = sound.rate
        self.levels[number, 0] = self.front(sound.samples, sound.rate)


def _decode_rows(
    rows: Iterable[Mapping[str, Any]], columns: Columns, count: int, source: str, *, front: LogMel, limit: int
) -> Decoded:
    """Decode `count` rows of a table, one at a time."""
    array = _Spectrograms(front, count, source, limit)
    read = TableRows(columns, count, source)
    for number, row, where in read.each(rows):
        encoded = columns.encoded(row)
        if encoded is None:
            raise DataError(f"{where} has no bytes; a path alone is not followed: store the bytes in the table")
        array.put(number, encoded, where)
    return Decoded(array.levels, read.targets, read.splits)


def _decode_clips(found: list[Clip], path: Path, front: LogMel, limit: int) -> tuple[Tensor, Tensor]:
    array = _Spectrograms(front, len(found), str(path), limit)
    for number, clip in enumerate(found):
        array.put(number, clip.read(), str(clip.path))
    return array.levels, torch.tensor([clip.label for clip in found], dtype=torch.int64)

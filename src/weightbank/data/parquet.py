"""Images in Parquet files as Hugging Face writes them: a column of encoded images and a column of labels."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from weightbank.data.columns import Columns, find_columns
from weightbank.data.encoded import Decoded, decode
from weightbank.data.extras import require
from weightbank.data.images import LIMIT, ImageData, from_arrays
from weightbank.errors import DataError

MAX_GROUP = 2**28  # bytes of one row group before compression; one value can be as long
Decoder: TypeAlias = Callable[[Iterable[Mapping[str, Any]], Columns, int, str], Decoded]
"""Called with the rows, the columns, how many rows there are, and what to call the source in errors."""
Kind: TypeAlias = Literal["image", "audio"]
SHARD = re.compile(r"(train|test)(?:-\d+-of-(\d+))?\.parquet")


def parquet_images(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    image: str | None = None,
    label: str | None = None,
    name: str | None = None,
    limit: int = LIMIT,
) -> ImageData:
    """Read images and labels from Parquet: (N, 1, H, W) where the first image is grey, else (N, 3, H, W), in [0, 1].

    Needs `pip install weightbank[hub]`.

    Args:
        path: a folder with `train.parquet` and `test.parquet`, or with shards (`train-00000-of-00002.parquet` ...), or
            with a folder `data` of such; or one file, or a folder with just one, whose split column says train or test.
        split: the name of the split column of one file; "split" by default. Rows of other splits are left out.
        image: the column of images, bytes or a struct with bytes; by default the one Hugging Face's notes in the schema
            call an image, or `image` or `img`, or the only one of such a type.
        label: the column of integer labels; by default the one noted as class label, or `label` or `labels`, or the
            only one of integers.
        name: what reports call it; the name of the folder or file by default.
        limit: the most bytes of pixels, one byte each, of one split (of all rows where one file has both).

    Class names are those noted in the schema; "0", "1", ... without a note.

    Raises:
        DataError: no such files, damaged ones, no telling the columns, images of several sizes, more bytes than
            `limit`, or a row group with more than 256 MiB.
    """
    path = Path(path)
    parts = read_parts(path, partial(_images, limit=limit), split=split, value=image, label=label)
    return from_arrays(parts.train, parts.test, name=name or named_after(path), classes=parts.classes)


class Parts(NamedTuple):
    """Values and labels of train and of test, and the class names where there are any."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...] | None


def named_after(path: Path) -> str:
    """What a data set is called if nobody says: its folder, or its file without the ending."""
    return path.resolve().name.removesuffix(".parquet")


def read_parts(
    path: Path,
    decoder: Decoder,
    *,
    split: str | None = None,
    value: str | None = None,
    label: str | None = None,
    kind: Kind = "image",
) -> Parts:
    """Read the two parts of a data set, the column of encoded values decoded by `decoder`; see `parquet_images`.

    `value` names that column, `kind` says what is looked for without a name.

    Raises:
        DataError: no such files, damaged ones, no telling the columns, or a row group with more than 256 MiB.
    """
    found = _shards(path) if path.is_dir() else [path]
    if isinstance(found, list):
        decoded, columns = _read(found, decoder, kind, split or "split", value, label)
        train, test = (decoded.part(part) for part in ("train", "test"))
        if len(train[1]) == 0 or len(test[1]) == 0:
            values = sorted({str(value)[:20] for value in decoded.splits})
            raise DataError(
                f"{path}: column {columns.split} says {', '.join(values[:5])}; wanted rows of train and of test"
            )
        return Parts(train, test, columns.classes)
    if split is not None:
        raise DataError(f"{path} has files for train and for test; a split column, {split!r}, is for a single file")
    train_rows, train_columns = _read(found["train"], decoder, kind, None, value, label)
    test_rows, test_columns = _read(found["test"], decoder, kind, None, value, label)
    if train_columns.classes != test_columns.classes:
        raise DataError(
            f"{path}: train has the classes {train_columns.classes}, test {test_columns.classes}; wanted the same"
        )
    return Parts(train_rows[:2], test_rows[:2], train_columns.classes)


def _images(rows: Iterable[Mapping[str, Any]], columns: Columns, count: int, source: str, *, limit: int) -> Decoded:
    return decode(rows, columns, count, source=source, limit=limit)


def _shards(folder: Path) -> dict[str, list[Path]] | list[Path]:
    """Return the files of train and of test, or the only file."""
    for place in (folder, folder / "data"):
        files = sorted(place.glob("*.parquet"))
        names = {file: match for file in files if (match := SHARD.fullmatch(file.name))}
        found = {part: [file for file in names if names[file][1] == part] for part in ("train", "test")}
        if all(found.values()):
            for part, shards in found.items():
                promised = int(names[shards[0]][2] or 1)
                if len(shards) != promised:
                    raise DataError(
                        f"{place} has {len(shards)} files of {part}, {shards[0].name} is one of {promised}; wanted all"
                    )
            return found
        if len(files) == 1:
            return files
    raise DataError(
        f"{folder} has neither train.parquet and test.parquet (or shards of them) nor just one .parquet file"
    )


def _read(
    paths: Sequence[Path], decoder: Decoder, kind: Kind, split: str | None, value: str | None, label: str | None
) -> tuple[Decoded, Columns]:
    """Decode the rows of several files with the same columns."""
    files, columns = [], None
    for path in paths:
        with _readable(path):
            file = require("pyarrow.parquet", f"reading {path}").ParquetFile(path)
            _check_groups(file.metadata, path)
            found = find_columns(file.schema_arrow, str(path), image=value, label=label, split=split, kind=kind)
        if columns not in (None, found):
            raise DataError(f"{path} has {found}, {paths[0]} has {columns}; wanted the same in all")
        files.append(file)
        columns = found
    assert columns is not None  # there is at least one path
    source = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    count = sum(file.metadata.num_rows for file in files)
    return decoder(_rows(paths, files, columns), columns, count, source), columns


def _check_groups(metadata: Any, path: Path) -> None:
    """Look at row groups only: pyarrow ends the process at a damaged entry when asked for a column's metadata."""
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if not 0 <= size <= MAX_GROUP:
            raise DataError(
                f"{path}: row group {group} has {size:,} bytes, more than {MAX_GROUP:,}; write the file again with "
                "smaller row groups"
            )


def _rows(paths: Sequence[Path], files: Sequence[Any], columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield one row at a time: a few bytes of file can stand for many rows of one long value."""
    for path, file in zip(paths, files, strict=True):
        with _readable(path):
            for batch in file.iter_batches(batch_size=1, columns=columns.leaves, use_threads=False):
                yield from batch.to_pylist()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises at a damaged file into a DataError."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; wanted a .parquet file or a folder with some")
    errors = require("pyarrow", f"reading {path}").ArrowException
    try:
        yield
    except (errors, OSError, UnicodeError) as error:
        raise DataError(f"{path} is damaged, or no Parquet file: {error}") from error

"""Image data sets of the Hugging Face Hub, or of anything else its `datasets` package loads."""

from collections.abc import Iterator
from typing import Any

from weightbank.data.columns import Columns, find_columns
from weightbank.data.encoded import Decoded, decode
from weightbank.data.extras import require
from weightbank.data.images import LIMIT, ImageData, from_arrays
from weightbank.errors import DataError


def hub(
    name: str,
    config: str | None = None,
    *,
    train: str = "train",
    test: str = "test",
    image: str | None = None,
    label: str | None = None,
    limit: int = LIMIT,
    **options: Any,
) -> ImageData:
    """Download (once) and read a data set of images and labels: `hub("ylecun/mnist")`.

    Needs `pip install weightbank[hub]`.

    Args:
        name: the data set, as `datasets.load_dataset` takes it.
        config: its configuration, where it has several.
        train: which split to train on; slices such as "train[:1000]" may be asked for.
        test: which split to test on.
        image: the column of images, found as `parquet_images` finds it.
        label: the column of labels, likewise.
        limit: the most bytes of pixels, one byte each, of one split.
        options: handed on to `load_dataset`, such as `cache_dir`, `data_files` or `revision`.

    Raises:
        DataError: it cannot be loaded, there is no telling the columns, images of several sizes, or more bytes than
            `limit`.
    """
    train_rows, columns = _read(name, config, train, image, label, limit, options)
    test_rows, _ = _read(name, config, test, image, label, limit, options)
    return from_arrays(train_rows[:2], test_rows[:2], name=name, classes=columns.classes)


def _read(
    name: str, config: str | None, split: str, image: str | None, label: str | None, limit: int, options: dict[str, Any]
) -> tuple[Decoded, Columns]:
    source = f"{name}, split {split}"
    datasets = require("datasets", f"loading {source}")
    try:
        loaded = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source} cannot be loaded: {error}") from error
    if not isinstance(loaded, datasets.Dataset):
        raise DataError(f"{source} is a {type(loaded).__name__}; wanted a Dataset, so one split and no streaming")
    columns = find_columns(loaded.features.arrow_schema, source, image=image, label=label)
    stored = loaded.select_columns([columns.image, columns.label]).with_format("arrow")
    return decode(_rows(stored), columns, len(stored), source=source, limit=limit), columns


def _rows(stored: Any) -> Iterator[dict[str, Any]]:
    for table in stored.iter(batch_size=1):
        yield from table.to_pylist()

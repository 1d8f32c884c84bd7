from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from weightbank.data import ImageData, hub, parquet_images
from weightbank.errors import DataError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def cifar10(stored: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with the first 30 and 20 test images of CIFAR-10 as train.parquet and test.parquet."""
    whole = pa.Table.from_batches([next(pq.ParquetFile(stored("cifar10/test.parquet")).iter_batches(50))])
    pq.write_table(whole.slice(0, 30), tmp_path / "train.parquet")
    pq.write_table(whole.slice(30), tmp_path / "test.parquet")
    return tmp_path


def through_datasets(folder: Path, **options: object) -> ImageData:
    files = {part: str(folder / f"{part}.parquet") for part in ("train", "test")}
    return hub("parquet", data_files=files, cache_dir=str(folder / "cache"), **options)


def test_datasets_and_parquet_give_the_same(cifar10):
    direct, loaded = parquet_images(cifar10), through_datasets(cifar10)
    assert loaded.name == "parquet"
    assert loaded.classes == direct.classes
    for ours, theirs in ((loaded.train, direct.train), (loaded.test, direct.test)):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_pixels_are_those_datasets_decodes(cifar10):
    files = {"test": str(cifar10 / "test.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, split="test", cache_dir=str(cifar10 / "oracle"))
    expected = np.stack([np.asarray(row["img"]) for row in rows]).transpose(0, 3, 1, 2)
    assert np.array_equal((through_datasets(cifar10).test[0].numpy() * 255).round(), expected)


def test_slices_of_splits_are_taken(cifar10):
    data = through_datasets(cifar10, train="train[:7]", test="train[7:10]")
    whole = through_datasets(cifar10)
    assert torch.equal(torch.cat([data.train[0], data.test[0]]), whole.train[0][:10])


def test_an_unknown_split_is_named(cifar10):
    with pytest.raises(DataError, match=r"parquet, split validation cannot be loaded.*validation"):
        through_datasets(cifar10, train="validation")


def test_an_unknown_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be loaded"):
        through_datasets(tmp_path)


def test_pixels_beyond_the_limit_are_refused(cifar10):
    with pytest.raises(DataError, match="limit of 1,000; give limit=92160"):
        through_datasets(cifar10, limit=1000)


def test_a_stream_is_refused(cifar10):
    with pytest.raises(DataError, match="no streaming"):
        through_datasets(cifar10, streaming=True)

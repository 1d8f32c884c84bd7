import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weightbank.data import parquet, parquet_images
from weightbank.data.images import ImageData
from weightbank.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def table(encoded: list[bytes | None], labels: list[Any] | None = None, **columns: Any) -> Any:
    images = pa.array([{"bytes": one, "path": None} for one in encoded], ENCODED)
    labels = [0] * len(encoded) if labels is None else labels
    return pa.table({"image": images, "label": pa.array(labels), **columns})


def noted(rows: Any, **features: Any) -> Any:
    return rows.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})


def write(folder: Path, train: Any, test: Any) -> Path:
    pq.write_table(train, folder / "train.parquet")
    pq.write_table(test, folder / "test.parquet")
    return folder


def as_uint8(x: torch.Tensor) -> np.ndarray:
    return (x.numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "PPM", "BMP"])
def test_colour_images_of_lossless_formats_come_back_exactly(tmp_path, form):
    train, test = pictures(5, 4, 6, 3), pictures(2, 4, 6, 3, seed=1)
    write(
        tmp_path,
        table([encode(one, form) for one in train], [0, 1, 2, 1, 0]),
        table([encode(one, form) for one in test], [2, 1]),
    )
    data = parquet_images(tmp_path, name="lossless")
    assert np.array_equal(as_uint8(data.train[0]), train.transpose(0, 3, 1, 2))
    assert np.array_equal(as_uint8(data.test[0]), test.transpose(0, 3, 1, 2))
    assert data.train[1].tolist() == [0, 1, 2, 1, 0]
    assert data.test[1].tolist() == [2, 1]
    assert data.classes == ("0", "1", "2")
    assert data.name == "lossless"


def test_grey_images_keep_one_channel(tmp_path):
    grey = pictures(3, 4, 6)
    rows = table([encode(one) for one in grey])
    assert np.array_equal(as_uint8(parquet_images(write(tmp_path, rows, rows)).train[0]), grey[:, None])


def test_a_grey_image_among_colour_ones_gets_three_equal_channels(tmp_path):
    colour, grey = pictures(1, 4, 6, 3)[0], pictures(1, 4, 6)[0]
    rows = table([encode(colour), encode(grey)])
    data = parquet_images(write(tmp_path, rows, rows))
    assert np.array_equal(as_uint8(data.train[0][1]), np.stack([grey] * 3))


def test_a_colour_image_among_grey_ones_is_refused(tmp_path):
    rows = table([encode(pictures(1, 4, 6)[0]), encode(pictures(1, 4, 6, 3)[0])])
    with pytest.raises(DataError, match="row 1 has the colour mode RGB; wanted 1 or L or LA"):
        parquet_images(write(tmp_path, rows, rows))


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path):
    rows = table([encode(np.full((4, 6), 40_000, np.uint16))])
    with pytest.raises(DataError, match="row 0 has the colour mode I;16"):
        parquet_images(write(tmp_path, rows, rows))


def test_class_names_come_from_the_notes_of_hugging_face(tmp_path):
    label = {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]}
    rows = noted(table([encode(pictures(1, 4, 4)[0])], [1]), image={"_type": "Image"}, label=label)
    assert parquet_images(write(tmp_path, rows, rows)).classes == ("cat", "dog", "owl")
    other = noted(rows, label=label | {"names": ["dog", "cat", "owl"]})
    with pytest.raises(DataError, match="wanted the same"):
        parquet_images(write(tmp_path, rows, other))


@pytest.mark.parametrize("note", [b"{", b"[" * 100_000, b"7", b'{"info": {"features": [1]}}', b"\xff"])
def test_unreadable_notes_count_as_none(tmp_path, note):
    rows = table([encode(pictures(1, 4, 4)[0])]).replace_schema_metadata({b"huggingface": note})
    assert parquet_images(write(tmp_path, rows, rows)).classes == ("0",)


def test_one_file_is_parted_by_its_split_column(tmp_path):
    x = pictures(6, 4, 4)
    splits = ["train", "test", "train", "validation", None, "test"]
    rows = table([encode(one) for one in x], list(range(6)), split=splits, fold=splits)
    pq.write_table(rows, tmp_path / "all.v1.parquet")
    for data in (
        parquet_images(tmp_path),
        parquet_images(tmp_path / "all.v1.parquet"),
        parquet_images(tmp_path, split="fold"),
    ):
        assert data.train[1].tolist() == [0, 2]
        assert data.test[1].tolist() == [1, 5]
        assert np.array_equal(as_uint8(data.train[0]), x[[0, 2], None])
        assert np.array_equal(as_uint8(data.test[0]), x[[1, 5], None])
    assert parquet_images(tmp_path / "all.v1.parquet").name == "all.v1"


def test_a_split_column_without_test_rows_is_refused(tmp_path):
    pq.write_table(table([encode(pictures(1, 4, 4)[0])], split=["training"]), tmp_path / "all.parquet")
    with pytest.raises(DataError, match="column split says training; wanted rows of train and of test"):
        parquet_images(tmp_path)
    with pytest.raises(DataError, match="that could be the split 'fold'; its columns are image"):
        parquet_images(tmp_path, split="fold")


@pytest.mark.parametrize("place", [".", "data"])
def test_shards_are_joined_in_order(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    x = pictures(5, 4, 4)
    for number, rows in enumerate((slice(0, 2), slice(2, 5))):
        shard = table([encode(one) for one in x[rows]], list(range(5))[rows])
        pq.write_table(shard, folder / f"train-0000{number}-of-00002.parquet")
    pq.write_table(table([encode(x[0])]), folder / "test-00000-of-00001.parquet")
    data = parquet_images(tmp_path)
    assert data.train[1].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(as_uint8(data.train[0]), x[:, None])
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="has 1 files of train, train-00000-of-00002.parquet is one of 2"):
        parquet_images(tmp_path)


def test_columns_are_found_by_note_by_name_or_as_the_only_ones(tmp_path):
    one = encode(pictures(1, 4, 4)[0])
    plain = pa.table({"picture": pa.array([one], pa.binary()), "kind": [3]})
    assert parquet_images(write(tmp_path, plain, plain)).train[1].tolist() == [3]
    two = table([one], [1], mask=pa.array([one], pa.large_binary()), age=[5])
    assert parquet_images(write(tmp_path, two, two)).train[1].tolist() == [1]
    assert parquet_images(tmp_path, image="mask", label="age").train[1].tolist() == [5]
    classes = {"_type": "ClassLabel", "names": list("abcdef")}
    assert parquet_images(write(tmp_path, noted(two, age=classes), noted(two, age=classes))).train[1].tolist() == [5]


def test_ambiguous_or_absent_columns_are_answered_with_the_list(tmp_path):
    one = encode(pictures(1, 4, 4)[0])
    vague = pa.table({"a": pa.array([one], pa.binary()), "fine": [3], "coarse": [1]})
    write(tmp_path, vague, vague)
    with pytest.raises(
        DataError, match=r"has 2 columns that could be the label.*fine \(int64\), coarse \(int64\).*label="
    ):
        parquet_images(tmp_path)
    assert parquet_images(tmp_path, label="coarse").train[1].tolist() == [1]
    with pytest.raises(DataError, match="has no columns that could be the image 'fine'"):
        parquet_images(tmp_path, image="fine")


GOOD = encode(pictures(1, 4, 4)[0])
BAD_ROWS = {
    "another size": (table([GOOD, encode(pictures(1, 4, 5)[0])]), "row 1 is 5 x 4 pixels, the first row is 4 x 4"),
    "no bytes": (table([GOOD, None]), "row 1 has no image bytes; a path alone is not followed"),
    "no image": (table([GOOD, b"hello"]), "row 1 is no image of BMP, GIF, JPEG"),
    "no program for pictures": (
        table([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"]),
        "row 0 is no image of BMP",
    ),
    "cut": (table([GOOD, GOOD[:45]]), "row 1 cannot be decoded"),
    "no label": (table([GOOD, GOOD], [0, None]), "row 1 has the label None"),
    "label of unlabelled rows": (table([GOOD, GOOD], [0, -1]), "row 1 has the label -1"),
    "huge label": (table([GOOD], [2**40]), "row 0 has the label 1099511627776"),
    "no rows": (table([GOOD]).slice(0, 0), "has 0 rows; wanted at least one"),
}


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused_with_their_number(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        parquet_images(write(tmp_path, rows, table([GOOD])))


def test_a_path_in_a_row_is_not_opened(tmp_path):
    (tmp_path / "secret.png").write_bytes(GOOD)
    images = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}], ENCODED)
    rows = pa.table({"image": images, "label": [0]})
    with pytest.raises(DataError, match="a path alone is not followed"):
        parquet_images(write(tmp_path, rows, rows))


def test_pixels_beyond_the_limit_are_refused_with_the_numbers(tmp_path):
    rows = table([GOOD] * 10)
    write(tmp_path, rows, rows)
    with pytest.raises(DataError, match=r"has 160 bytes of pixels, \(10, 1, 4, 4\).*limit of 159; give limit=160"):
        parquet_images(tmp_path, limit=159)
    assert len(parquet_images(tmp_path, limit=160).train[1]) == 10


def test_an_image_that_claims_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    rows = table([b"P6 20000 20000 255\n"])
    with pytest.raises(DataError, match="row 0 is no image.*decompression bomb"):
        parquet_images(write(tmp_path, rows, rows), limit=2**62)
    rows = table([GOOD, b"P6 13000 13000 255\n"])  # above Pillow's limit once, where it only warns
    with pytest.raises(DataError, match="row 1 is no image.*decompression bomb"):
        parquet_images(write(tmp_path, rows, rows))


def test_a_long_value_repeated_in_a_small_file_is_held_a_few_times_only(tmp_path):
    long, rows = bytes(2**23), 64
    bomb = tmp_path / "train.parquet"
    pq.write_table(
        pa.table({"image": pa.array([long] * rows, pa.binary()), "label": [0] * rows}),
        bomb,
        compression="zstd",
        dictionary_pagesize_limit=2**31 - 1,
        write_batch_size=rows,
    )
    pq.write_table(table([GOOD]), tmp_path / "test.parquet")
    assert bomb.stat().st_size < 10_000
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match="row 0 is no image"):
            parquet_images(tmp_path)
        # the page, its dictionary and the row being built; all 64 rows at once would be 64 values and more
        assert len(long) <= pool.max_memory() < 8 * len(long)
    finally:
        pa.set_memory_pool(before)


def test_row_groups_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    rows = table([encode(one) for one in pictures(20, 4, 4)])
    write(tmp_path, rows, rows)
    monkeypatch.setattr(parquet, "MAX_GROUP", 1000)
    with pytest.raises(DataError, match=r"row group 0 has [0-9,]+ bytes, more than 1,000"):
        parquet_images(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"not a table at all"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    (tmp_path / "all.parquet").write_bytes(content)
    with pytest.raises(DataError, match="is damaged, or no Parquet file"):
        parquet_images(tmp_path)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"has neither train\.parquet and test\.parquet"):
        parquet_images(tmp_path)
    with pytest.raises(DataError, match="is not a file"):
        parquet_images(tmp_path / "gone.parquet")


@pytest.mark.parametrize("seed", range(4))
def test_garbled_files_are_read_or_refused(tmp_path, seed):
    generator = np.random.default_rng(seed)
    rows = table([encode(one) for one in pictures(6, 5, 4, 3)], split=["train"] * 4 + ["test"] * 2)
    path = tmp_path / "all.parquet"
    pq.write_table(rows, path, compression="none")
    good = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(100):
        bad = good.copy()
        bad[generator.integers(0, len(bad), 3)] ^= generator.integers(1, 256, 3, dtype=np.uint8)
        path.write_bytes(bad.tobytes())
        try:
            assert isinstance(parquet_images(path), ImageData)
        except DataError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(("module", "package"), [("pyarrow", "pyarrow"), ("PIL", "pillow")])
def test_a_missing_package_is_answered_with_the_extra(tmp_path, monkeypatch, module, package):
    rows = table([GOOD])
    write(tmp_path, rows, rows)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs {package}, which is missing: pip install weightbank\[hub\]"):
        parquet_images(tmp_path)


def oracle(path: Path, rows: int, split: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the first rows of a file (of one split) with pyarrow, pillow and numpy alone."""
    records = (
        pq.read_table(path, filters=None if split is None else [("split", "==", split)]).slice(0, rows).to_pylist()
    )
    images = [np.asarray(Image.open(io.BytesIO(record["img"]["bytes"])).convert("RGB")) for record in records]
    return np.stack(images).transpose(0, 3, 1, 2), np.array([record["label"] for record in records])


def test_real_cifar10_is_read(stored, tmp_path):
    source = stored("cifar10/test.parquet")
    pq.write_table(pq.read_table(source).slice(0, 200), tmp_path / "train.parquet")
    (tmp_path / "test.parquet").symlink_to(source)
    data = parquet_images(tmp_path)
    assert data.test[0].shape == (10_000, 3, 32, 32)
    assert torch.equal(torch.bincount(data.test[1]), torch.full((10,), 1000))
    assert data.classes[:4] == ("airplane", "automobile", "bird", "cat")
    x, y = oracle(source, 200)
    for part in (data.train, data.test):
        assert np.array_equal(as_uint8(part[0][:200]), x)
        assert np.array_equal(part[1][:200].numpy(), y)


def test_real_traffic_signs_are_read_and_parted(stored):
    folder = stored("gtsrb")
    data = parquet_images(folder)
    assert data.name == "gtsrb"
    assert len(data.classes) == 43
    assert data.classes[14] == "stop"
    assert torch.equal(torch.bincount(data.train[1]), torch.full((43,), 200))
    assert torch.equal(torch.bincount(data.test[1]), torch.full((43,), 60))
    for part, split in ((data.train, "train"), (data.test, "test")):
        x, y = oracle(folder / "gtsrb_subset.parquet", 100, split)
        assert np.array_equal(as_uint8(part[0][:100]), x)
        assert np.array_equal(part[1][:100].numpy(), y)


def test_real_sounds_are_refused_as_images(stored):
    with pytest.raises(DataError, match="row 0 is no image"):
        parquet_images(stored("spoken_digits"))

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightbank.data import mnist_family, read_idx
from weightbank.errors import DataError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist puts it
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    code = CODES[array.dtype.str[1:]]
    head = bytes([0, 0, code, len(shape)]) + b"".join(struct.pack(">I", length) for length in shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_family(folder: Path, ending: str = "", dot: str = "-") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 5), ("t10k", 3)):
        arrays[f"{part}-images{dot}idx3-ubyte"] = generator.integers(0, 256, (count, 4, 3), dtype=np.uint8)
        arrays[f"{part}-labels{dot}idx1-ubyte"] = np.arange(count, dtype=np.uint8)
    for name, array in arrays.items():
        (folder / (name + ending)).write_bytes(gzip.compress(idx(array)) if ending else idx(array))
    return arrays


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 3, 4, 5)])
def test_what_was_written_is_read(tmp_path, dtype, shape, pack):
    values = (np.random.default_rng(0).standard_normal(shape) * 50).astype(dtype)
    (tmp_path / "values").write_bytes(pack(idx(values)))
    read = read_idx(tmp_path / "values").numpy()
    assert read.dtype == values.dtype
    assert np.array_equal(read, values)


def test_literal_bytes_are_read(tmp_path):
    (tmp_path / "values").write_bytes(bytes.fromhex("00000b02 00000001 00000002 0102 fffe"))
    assert torch.equal(read_idx(tmp_path / "values"), torch.tensor([[258, -2]], dtype=torch.int16))


def test_values_longer_than_one_chunk_of_reading_are_read_whole(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, 3 * 2**20 + 17, dtype=np.uint8)
    (tmp_path / "values").write_bytes(gzip.compress(idx(values), 1))
    assert np.array_equal(read_idx(tmp_path / "values").numpy(), values)


SMALL = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))
HOSTILE = {
    "empty": (b"", "ends after 0 of the next 4 bytes"),
    "cut in the magic": (SMALL[:3], "ends after 3 of the next 4 bytes"),
    "cut in the shape": (SMALL[:9], "ends after 5 of the next 8 bytes"),
    "cut in the values": (SMALL[:-1], "promises 6 bytes of shape (2, 3) after a header of 12 but has 5"),
    "trailing garbage": (SMALL + b"x", "promises 6 bytes of shape (2, 3) after a header of 12 but has 7"),
    "claims 2**40 bytes": (idx(np.zeros(4, "u1"), (2**20, 2**20)), "promises 1,099,511,627,776 bytes"),
    "overflows 64 bits": (idx(np.zeros(4, "u1"), (2**32 - 1,) * 4), "but has 4"),
    "wrong magic": (b"PK\3\4" + SMALL, "starts with the bytes 50 4b 03 04"),
    "unknown type": (b"\0\0\7\1" + SMALL[4:], "starts with the bytes 00 00 07 01"),
    "no dimension": (b"\0\0\10\0" + SMALL[4:], "1 to 8 dimensions"),
    "too many dimensions": (b"\0\0\10\377" + SMALL, "1 to 8 dimensions"),
    "a dimension of zero": (idx(np.zeros((0, 3), "u1")), "wanted at least one value"),
}
ZIPPED = {
    "cut in the values": (gzip.compress(SMALL[:-1]), "ends after 5 of the next 6 bytes"),
    "trailing garbage": (gzip.compress(SMALL + b"x"), "but goes on after them"),
    "claims 2**40 bytes": (gzip.compress(HOSTILE["claims 2**40 bytes"][0]), "more than gzip can keep in"),
    "stream cut": (gzip.compress(SMALL)[:-9], "cannot be read beyond"),
    "checksum wrong": (gzip.compress(SMALL)[:-8] + bytes(8), "CRC check failed"),
    "deflate damaged": (gzip.compress(SMALL)[:10] + b"\377" * 20, "cannot be read beyond"),
    "garbage after the stream": (gzip.compress(SMALL) + b"x", "Not a gzipped file"),
    "only the magic": (b"\x1f\x8b", "cannot be read beyond"),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [*HOSTILE.values(), *ZIPPED.values()],
    ids=[*HOSTILE, *(f"gzip: {name}" for name in ZIPPED)],
)
def test_hostile_files_are_refused_with_the_numbers_in_little_memory(tmp_path, content, message):
    (tmp_path / "values").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error:
            read_idx(tmp_path / "values")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(error.value)
    assert peak < 2**20  # buffers of gzip and of the file


def test_a_gzip_bomb_is_refused_before_it_unfolds(tmp_path):
    size = 2**26
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(idx(np.zeros(size, "u1"))))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"limit of 1,048,576; give limit={size}"):
            read_idx(tmp_path / "bomb.gz", limit=2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_reading_a_zipped_file_holds_its_values_once(tmp_path):
    size = 2**26
    (tmp_path / "large.gz").write_bytes(gzip.compress(idx(np.zeros(size, "u1")), 1))
    tracemalloc.start()
    try:
        assert len(read_idx(tmp_path / "large.gz")) == size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size <= peak < size + 2**23  # the values and a few chunks of 1 MiB


def test_a_bomb_behind_a_small_header_is_not_unfolded(tmp_path):
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(SMALL + bytes(2**26)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="but goes on after them"):
            read_idx(tmp_path / "bomb.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@given(content=st.binary(max_size=64), zipped=st.booleans())
def test_random_bytes_are_read_or_refused(tmp_path_factory, content, zipped):
    path = tmp_path_factory.mktemp("random") / "values"
    path.write_bytes(gzip.compress(b"\0\0\10" + content) if zipped else b"\0\0\10" + content)
    try:
        values = read_idx(path)
    except DataError:
        return
    assert idx(values.numpy()) == b"\0\0\10" + content


def test_a_folder_is_no_idx_file(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        read_idx(tmp_path)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
def test_a_family_is_read_plain_and_zipped(tmp_path, ending, dot):
    folder = tmp_path / "kmnist"
    folder.mkdir()
    written = write_family(folder, ending, dot)
    data = mnist_family(folder)
    assert data.name == "kmnist"
    assert data.classes == ("0", "1", "2", "3", "4")
    for (x, y), part in ((data.train, "train"), (data.test, "t10k")):
        expected = written[f"{part}-images{dot}idx3-ubyte"][:, None].astype(np.float32) / np.float32(255)
        assert np.array_equal(x.numpy(), expected)
        assert np.array_equal(y.numpy(), written[f"{part}-labels{dot}idx1-ubyte"])


def test_a_missing_file_is_named(tmp_path):
    write_family(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"none of t10k-labels-idx1-ubyte, t10k-labels-idx1-ubyte\.gz"):
        mnist_family(tmp_path)


def test_files_that_do_not_match_are_refused(tmp_path):
    write_family(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, "u1")))
    with pytest.raises(DataError, match=r"shape \(3, 1, 4, 3\) and labels of shape \(4,\)"):
        mnist_family(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, "i4")))
    with pytest.raises(DataError, match=r"torch.int32 of shape \(3,\); wanted torch.uint8 in 1 dimensions"):
        mnist_family(tmp_path)


def check_against_numpy(folder: Path) -> None:
    data = mnist_family(folder)
    for (x, y), part, count in ((data.train, "train", 60_000), (data.test, "t10k", 10_000)):
        images, labels = (
            np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
            for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
        )
        assert x.shape == (count, 1, 28, 28)
        assert np.array_equal((x.numpy() * 255).round().astype(np.uint8).ravel(), images)
        assert np.array_equal(y.numpy(), labels)
    assert data.classes == tuple("0123456789")
    assert torch.bincount(data.test[1]).sum() == 10_000


def test_real_mnist_is_read(stored):
    folder = stored("mnist")
    check_against_numpy(folder)
    assert mnist_family(folder).train[1][:5].tolist() == [5, 0, 4, 1, 9]


def test_real_fashion_mnist_is_read():
    if not FASHION.is_dir():
        pytest.skip("no Fashion-MNIST: the Debian package dataset-fashion-mnist is not installed")
    check_against_numpy(FASHION)
    data = mnist_family(FASHION)
    assert data.name == "fashion-mnist"
    assert torch.equal(torch.bincount(data.train[1]), torch.full((10,), 6000))  # balanced, as published

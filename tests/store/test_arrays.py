import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightbank.errors import CapacityError, CorruptError, StoreError
from weightbank.store import arrays as module
from weightbank.store.arrays import ArrayFile, ArrayWriter, load_arrays, save_arrays

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    torch.bool,
]  # fmt: skip


def random_of(dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    return values > 0 if dtype == torch.bool else values.abs().to(dtype) if "u" in str(dtype) else values.to(dtype)


def arrays() -> dict[str, Tensor]:
    """All dtypes, odd sizes, no dimension, no numbers, a name that is not ASCII, and in another order than sorted."""
    made = {f"of {dtype}": random_of(dtype, 3, 5) for dtype in reversed(DTYPES)}
    return {"θ": torch.tensor(2.5), "a": torch.arange(3, dtype=torch.uint8), "none": torch.empty(0, 4), **made}


def same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bytes(one.clone(memory_format=torch.contiguous_format).untyped_storage()) == bytes(
        other.clone(memory_format=torch.contiguous_format).untyped_storage()
    )


@pytest.mark.parametrize("metadata", [{}, {"format": 'pt "quoted" \n ü'}])
def test_file_has_the_bytes_that_safetensors_writes(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file(arrays(), tmp_path / "theirs", metadata or None)
    save_arrays(tmp_path / "ours", arrays(), metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    loaded, text = load_arrays(tmp_path / "theirs")
    assert text == metadata
    assert loaded.keys() == arrays().keys()
    assert all(same(loaded[name], tensor) for name, tensor in arrays().items())
    assert all(same(tensor, loaded[name]) for name, tensor in load_file(tmp_path / "ours").items())


def test_file_written_in_pieces_equals_one_written_at_once(tmp_path: Path) -> None:
    tensors = {"a": random_of(torch.float32, 7, 11), "b": random_of(torch.int8, 13)}
    save_file(tensors, tmp_path / "whole")
    with ArrayWriter(
        tmp_path / "pieces", {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, {}
    ) as file:
        for start in range(6, -1, -1):  # any order
            file.write("a", tensors["a"][start], at=11 * start)
        file.write("b", tensors["b"][5:], at=5)
        assert not (tmp_path / "pieces").exists()  # not before it is whole
        file.write("b", tensors["b"][:5])
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces", "whole"]


def test_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    save_arrays(tmp_path / "a", {"x": torch.ones(3)})
    before = (tmp_path / "a").read_bytes()
    with contextlib.suppress(ZeroDivisionError), ArrayWriter(tmp_path / "a", {"x": (torch.float32, [3])}, {}) as file:
        file.write("x", torch.zeros(3))
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_failing_sync_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    save_arrays(tmp_path / "a", {"x": torch.ones(3)})
    before = (tmp_path / "a").read_bytes()
    for call in ("fdatasync", "posix_fallocate"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{call}", fail if call == "fdatasync" else lambda *arguments: fail(0))
            with pytest.raises(CapacityError):
                save_arrays(tmp_path / "a", {"x": torch.zeros(3)})
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "data", "at"),
    [
        ("x", torch.ones(4), 0),
        ("x", torch.ones(2), 2),
        ("x", torch.ones(1), -1),
        ("x", torch.ones(3, dtype=torch.float64), 0),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, name: str, data: Tensor, at: int) -> None:
    shapes = {"w": (torch.float32, [3]), "x": (torch.float32, [3]), "y": (torch.float32, [3])}
    with ArrayWriter(tmp_path / "a", shapes, {}) as file, contextlib.suppress(StoreError):
        file.write(name, data, at)
        raise AssertionError("taken")
    assert not any(array.any() for array in load_file(tmp_path / "a").values())


@pytest.mark.parametrize("tensors", [{"x": torch.ones(2, dtype=torch.complex64)}, {"__metadata__": torch.ones(2)}])
def test_what_such_a_file_cannot_hold_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(StoreError, match="convert or rename it"):
        save_arrays(tmp_path / "a", tensors)
    with pytest.raises(StoreError, match="UTF-8"):
        save_arrays(tmp_path / "a", {"\ud800": torch.ones(2)})
    assert list(tmp_path.iterdir()) == []


def test_places_where_no_file_can_be_are_store_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder"):
        with pytest.raises(StoreError):
            save_arrays(path, {"x": torch.ones(2)})
        with pytest.raises(StoreError, match="no such file"):
            load_arrays(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_mapped_arrays_equal_those_read_and_never_change_the_file(tmp_path: Path) -> None:
    save_arrays(tmp_path / "file.safetensors", arrays())
    before = (tmp_path / "file.safetensors").read_bytes()
    with ArrayFile(tmp_path / "file.safetensors") as file:
        for name in file.shapes:
            mapped = file.map(name)
            assert same(mapped, file.read(name))
            mapped.zero_()
    assert (tmp_path / "file.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_columns_of_rows_equal_the_slice(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = random_of(dtype, 6, 10)
    save_arrays(tmp_path / "a", {"before": torch.ones(3, dtype=torch.uint8), "x": whole})
    with ArrayFile(tmp_path / "a") as file:
        for start, stop in ((0, 10), (3, 7), (9, 10), (4, 4)):
            assert same(file.read_columns("x", start, stop), whole[:, start:stop])
            for rows in (range(6), range(2, 5), range(1, 6, 2), range(5, 6), range(3, 3)):
                expected = whole[rows.start : rows.stop : rows.step, start:stop]
                assert same(file.read_columns("x", start, stop, rows=rows), expected)


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    save_arrays(tmp_path / "a", {"x": torch.ones(6, 10), "y": torch.ones(60)})
    with ArrayFile(tmp_path / "a") as file:
        for name, start, stop, rows in [
            ("x", 0, 11, None),
            ("x", -1, 5, None),
            ("x", 5, 4, None),
            ("x", 0, 10, range(7)),
            ("x", 0, 10, range(-1, 3)),
            ("x", 0, 10, range(5, 0, -1)),
            ("y", 0, 10, None),
        ]:
            with pytest.raises(StoreError, match="has shape"):
                file.read_columns(name, start, stop, rows=rows)
        for read in (lambda: file.read("z"), lambda: file.read_columns("z", 0, 1)):
            with pytest.raises(CorruptError, match="no array 'z'; there are: x, y"):
                read()


def header(text: str, data: int = 0) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(data)


def described(shape: list[int], offsets: list[int], dtype: str = "F32") -> str:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


FOREIGN = {
    "empty": b"",
    "text": b"not a file of ours, but longer than eight bytes",
    "pickle": b"\x80\x04\x95" + bytes(100),
    "huge header": (2**63 - 1).to_bytes(8, "little") + bytes(100),
    "no json": header("{"),
    "deep": header('{"x":' + "[" * 10_000),
    "a list": header("[]"),
    "beyond the end": header(described([4], [0, 16]), 15),
    "more behind": header(described([4], [0, 16]), 17),
    "hole": header(described([4], [4, 20]), 20),
    "other length": header(described([5], [0, 16]), 16),
    "negative": header(described([-4], [0, 16]), 16),
    "huge": header(described([2**62, 4], [0, 2**64]), 16),
    "huge nothing": header(described([0, 2**62, 2**62], [0, 0])),
    "unknown dtype": header(described([4], [0, 16], "F33"), 16),
    "complex": header(described([2], [0, 16], "C64"), 16),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_corrupt(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(FOREIGN[kind])
    with pytest.raises(CorruptError, match="a: (not a whole|an array has)"):
        load_arrays(tmp_path / "a")


def test_file_cut_anywhere_is_corrupt(tmp_path: Path) -> None:
    save_arrays(tmp_path / "a", {"x": torch.ones(10), "y": torch.ones(3)})
    whole = (tmp_path / "a").read_bytes()
    for size in range(0, len(whole), 7):
        (tmp_path / "a").write_bytes(whole[:size])
        with pytest.raises(CorruptError):
            load_arrays(tmp_path / "a")


def test_a_file_that_is_replaced_while_it_is_opened_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the openings of one reader somebody else puts another file there: never the bytes of both."""
    path = tmp_path / "arrays.safetensors"
    old, new = {"x": torch.zeros(5_000), "y": torch.ones(3)}, {"y": torch.full((700,), 7.0)}
    opened = module.safe_open
    left = [new, old, new]

    def replacing(*arguments: object, **options: object) -> object:
        if left:
            save_arrays(path, left.pop())
        return opened(*arguments, **options)

    save_arrays(path, old)
    monkeypatch.setattr(module, "safe_open", replacing)
    with ArrayFile(path) as file:
        assert not left
        assert file.shapes == {"y": (700,)}
        save_arrays(path, old)
        for found in (file.read("y"), file.map("y")):
            assert torch.equal(found, new["y"])


def test_a_file_that_is_replaced_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "arrays.safetensors"
    opened = module.safe_open

    def replacing(*arguments: object, **options: object) -> object:
        save_arrays(path, {"x": torch.zeros(3)})
        return opened(*arguments, **options)

    save_arrays(path, {"x": torch.zeros(3)})
    monkeypatch.setattr(module, "safe_open", replacing)
    with pytest.raises(StoreError, match="was replaced 100 times while it was opened"):
        ArrayFile(path)

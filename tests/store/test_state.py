import json
import math
import random
import tempfile
from collections import OrderedDict, namedtuple
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from weightbank.errors import CorruptError, StoreError
from weightbank.store.arrays import load_arrays, save_arrays
from weightbank.store.state import _checksum, load_state, save_state

KIND = "test 1"

numbers = st.integers() | st.floats() | st.booleans() | st.none() | st.text()
tensors = arrays_of.arrays(
    st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "?"]), arrays_of.array_shapes(min_dims=0, min_side=0)
).map(torch.from_numpy)
arrays = arrays_of.arrays(
    st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "<i8", ">i2", "u1", "u2", "u4", "u8", "?"]),
    arrays_of.array_shapes(min_dims=0, min_side=0),
)
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
states = st.recursive(
    numbers | tensors | arrays,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type, value and bits; NaN is NaN; the byte order of arrays does not count."""
    if isinstance(one, np.ndarray):
        plain = one.astype(one.dtype.newbyteorder("="))
        return type(other) is np.ndarray and (plain.dtype, plain.shape) == (other.dtype, other.shape) and (
            plain.tobytes() == other.tobytes()
        )  # fmt: skip
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return same(one.numpy(), other.numpy())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


@settings(max_examples=150, deadline=None)
@given(states)
def test_state_comes_back_as_it_was(state: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder) / "a", state, KIND)
        assert same(state, load_state(Path(folder) / "a", KIND))


def test_names_that_meet_do_not_mix_their_tensors(tmp_path: Path) -> None:
    state = {
        "a": {"b": torch.tensor(1), "b.c": torch.tensor(2)},
        "a.b": torch.tensor(3),
        "a.b.c": torch.tensor(4),
        "a.b'": torch.tensor(5),
        1: torch.tensor(6),
        "1": torch.tensor(7),
        "x": [torch.tensor(8)],
        "x.0": torch.tensor(9),
    }
    save_state(tmp_path / "a", state, KIND)
    assert same(state, load_state(tmp_path / "a", KIND))


def test_tied_weights_and_views_come_back_equal(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"model": dict(model.state_dict()), "views": [whole[:, 1], whole.T, whole[0], whole.expand(2, 3, 4)]}
    save_state(tmp_path / "a", state, KIND)
    again = load_state(tmp_path / "a", KIND)
    assert torch.equal(again["model"]["0.weight"], model[0].weight)
    assert torch.equal(again["model"]["1.weight"], model[0].weight)
    assert all(torch.equal(one, other) for one, other in zip(again["views"], state["views"], strict=True))


def test_random_states_and_optimizers_come_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    state = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
        "generator": torch.Generator().manual_seed(3).get_state(),
    }
    save_state(tmp_path / "a", state, KIND)
    assert same(state, load_state(tmp_path / "a", KIND))


def test_numbers_of_numpy_become_plain_ones_and_dictionaries_plain_dictionaries(tmp_path: Path) -> None:
    state = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": OrderedDict(x=1)}
    save_state(tmp_path / "a", state, KIND)
    assert same(load_state(tmp_path / "a", KIND), {"a": 0.5, "b": 3, "c": True, "d": {"x": 1}})


class Color(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "a object"),
        ({1, 2}, "a set"),
        (b"bytes", "a bytes"),
        (1j, "a complex"),
        (lambda: 0, "a function"),
        (torch.float32, "a dtype"),
        (Color.RED, "a Color"),
        (namedtuple("Pair", "a b")(1, 2), "a Pair"),
        (np.array(["text"]), "a ndarray"),
        (np.array([1j]), "a ndarray"),
        (np.array([object()]), "a ndarray"),
        (torch.ones(2, dtype=torch.complex64), "complex64"),
    ],
)
def test_value_of_another_type_is_refused_by_name(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(StoreError, match=rf"(?s)state\.outer\.0.*{message}"):
        save_state(tmp_path / "a", {"outer": [value]}, KIND)
    assert list(tmp_path.iterdir()) == []


def test_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(StoreError, match="cannot save"):
        save_state(tmp_path / "a", endless, KIND)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "a", {}, KIND)
    with pytest.raises(CorruptError, match="holds 'test 1', wanted 'test 2'"):
        load_state(tmp_path / "a", "test 2")
    save_arrays(tmp_path / "b", {"x": torch.ones(2)})
    with pytest.raises(CorruptError, match="holds 'something else'"):
        load_state(tmp_path / "b", KIND)


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save_state(tmp_path / "a", {"x": torch.ones(20), "y": np.arange(3), "z": ["text", 1.5]}, KIND)
    whole = (tmp_path / "a").read_bytes()
    known = load_arrays(tmp_path / "a")
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(CorruptError):
            load_state(tmp_path / "a", KIND)
    assert known[1]["weightbank"] == KIND


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"$tensor": "y"}',
        '{"$tensor": ["x"]}',
        '{"$array": {"$tensor": "x"}, "of": "O"}',
        '{"$array": {"$tensor": "x"}, "of": "S1000000000"}',
        '{"$array": {"$tensor": "x"}, "of": ["f4"]}',
        '{"$array": 3, "of": "float32"}',
        '{"$tuple": 3}',
        '{"$dict": [[[1], 2]]}',
        '{"$dict": [[1, 2, 3]]}',
        '{"$dict": 7}',
        '{"other": 7}',
        "nothing",
        "",
        "1" * 5000,
    ],
)
def test_strangers_state_is_corrupt(tmp_path: Path, text: str) -> None:
    held = {"x": torch.ones(1000)}
    metadata = {"weightbank": KIND, "state": text, "crc32": _checksum(text, held)}
    save_arrays(tmp_path / "a", held, metadata)
    with pytest.raises(CorruptError, match="its state cannot be read"):
        load_state(tmp_path / "a", KIND)


def test_state_is_readable_json_and_plain_tensors(tmp_path: Path) -> None:
    save_state(tmp_path / "a", {"w": torch.ones(2), 3: (1, None)}, KIND)
    held, metadata = load_arrays(tmp_path / "a")
    assert list(held) == ["state.w"]
    assert json.loads(metadata["state"]) == {"$dict": [["w", {"$tensor": "state.w"}], [3, {"$tuple": [1, None]}]]}

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import weightbank as wb
from weightbank.errors import DataError
from weightbank.streams import Stream, split
from weightbank.zoo import mlp

X = torch.arange(100.0)[:, None]
Y = torch.arange(100) % 10


def task(train: Any) -> wb.Task:
    return wb.Task("numbers", mlp(1, 10), torch.nn.functional.cross_entropy, train, (X, Y), batch_size=16)


def seen(batches: Any) -> list[int]:
    return [int(number) for x, _ in batches for number in x[:, 0]]


def one_pass(stream: Stream, count: int) -> list[int]:
    numbers: list[int] = []
    while len(numbers) < count:
        numbers += [int(number) for number in stream.next()[0][:, 0]]
    return numbers


SOURCES: dict[str, Any] = {
    "tensors": lambda: (X, Y),
    "dataset": lambda: TensorDataset(X, Y),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    "plain loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=16),
    "batches": lambda: [(X[k : k + 5], Y[k : k + 5]) for k in range(0, 100, 5)],
}


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_held_back_is_never_trained_on(source: str) -> None:
    stream, held = split(task(SOURCES[source]()), seed=3)
    judged = seen(held)
    assert len(judged) == len(set(judged)) == 10
    assert judged == seen(held)  # the same again
    trained = one_pass(stream, 90)
    assert sorted(trained + judged) == list(range(100))
    again = one_pass(stream, 90)
    assert sorted(again) == sorted(trained)
    shuffled = source in ("tensors", "dataset", "loader")
    assert (again != trained) == shuffled
    other, _ = split(task(SOURCES[source]()), seed=4)
    assert (one_pass(other, 90) != trained) == shuffled or source == "plain loader"


@pytest.mark.parametrize("source", ["tensors", "loader", "batches"])
def test_a_stream_goes_on_where_another_one_was(source: str) -> None:
    stream, _ = split(task(SOURCES[source]()), seed=0)
    for _ in range(8):
        stream.next()
    state = stream.state_dict()
    wanted = [stream.next()[0] for _ in range(9)]
    other, _ = split(task(SOURCES[source]()), seed=0)
    other.load_state_dict(state)
    assert all(torch.equal(x, other.next()[0]) for x in wanted)


def test_at_most_two_thousand_examples_are_held_back() -> None:
    x = torch.zeros(50_000, 1)
    _, held = split(task((x, torch.zeros(50_000, dtype=torch.int64))), seed=0)
    assert len(seen(held)) == 2_000


def test_given_validation_data_leave_all_training_data() -> None:
    stream, held = split(task((X, Y)), seed=0, validation=(X[:3] + 1000, Y[:3]))
    assert seen(held) == [1000, 1001, 1002]
    assert sorted(one_pass(stream, 100)) == list(range(100))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[0], Y[0])])


def test_data_from_which_nothing_can_be_held_back_are_refused_with_advice() -> None:
    loader: Dataset[Any] = Endless()
    with pytest.raises(DataError, match=r"pass validation=\{'numbers': data\}"):
        split(task(DataLoader(loader)), seed=0)
    with pytest.raises(DataError, match="1 training examples; at least two"):
        split(task((X[:1], Y[:1])), seed=0)


def test_an_empty_stream_says_so() -> None:
    with pytest.raises(DataError, match="no batch came"):
        Stream("numbers", [], None, torch.device("cpu")).next()

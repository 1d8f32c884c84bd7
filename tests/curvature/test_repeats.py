"""Which sources of training data can be asked for the same examples twice."""

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import classes, mlp, numbers
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from weightbank.curvature import CurvatureError
from weightbank.curvature.repeats import check_data
from weightbank.task import Task


def task_on(train):
    return Task("t", mlp(), F.cross_entropy, train, [])


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.randn(4), 1


class ByName(Dataset):
    def __getitem__(self, name):
        return {"a": numbers(4)}[name], 1

    def __len__(self):
        return 1


class Nested(Dataset):
    """Inputs in a dict with one entry that changes."""

    def __init__(self, changes):
        self.changes = changes

    def __len__(self):
        return 3

    def __getitem__(self, index):
        jitter = float(torch.rand(())) if self.changes else 0.5
        return {"image": numbers(4, seed=index), "scale": [1, jitter], "name": "x"}, index


def test_sources_that_cannot_be_asked_are_taken_at_their_word():
    pair = (numbers(6, 4), classes(6))
    for train in (pair, [pair], DataLoader(Stream()), DataLoader(ByName(), sampler=["a"])):
        check_data(task_on(train))


def test_repeating_loaders_pass():
    for loader in (
        DataLoader(TensorDataset(numbers(6, 4), classes(6)), 4, shuffle=True),
        DataLoader(TensorDataset(torch.full((6, 4), torch.nan), classes(6)), 4),
        DataLoader(Nested(False), 2),
        DataLoader(Nested(False), batch_size=None),
        DataLoader(Nested(False), 2, collate_fn=list),
    ):
        check_data(task_on(loader))


@pytest.mark.parametrize("how", [{"batch_size": 2}, {"batch_size": None}, {"batch_size": 2, "collate_fn": list}])
def test_a_change_deep_inside_is_found(how):
    with pytest.raises(CurvatureError, match="two versions"):
        check_data(task_on(DataLoader(Nested(True), **how)))

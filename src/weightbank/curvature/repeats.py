"""Whether training data repeat: an augmented example is another one at each reading."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from weightbank.errors import CurvatureError
from weightbank.task import Task

READINGS = 16
"""Pairs of readings compared: a flip with probability ½ stays hidden in 1 of 65,536 cases."""


def check_data(task: Task) -> None:
    """Raise `CurvatureError` if the first examples of a `DataLoader` over a map-style data set read twice differ.

    The loader's own `collate_fn` is part of it. Other sources of batches (lists, pairs of tensors, streams) are taken
    at their word.
    """
    loader = task.train
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None or isinstance(dataset, IterableDataset):
        return
    whole = getattr(loader, "batch_sampler", None) is not None
    try:
        indices = range(min(len(dataset), READINGS))
        rounds = -(-READINGS // len(indices))
        pairs = [[_read(dataset, indices, collate, whole) for _ in range(2)] for _ in range(rounds)]
    except (LookupError, TypeError, ZeroDivisionError):  # keys are no numbers, no length, or nothing there
        return
    if not all(_same(*pair) for pair in pairs):
        raise CurvatureError(
            f"{task.name}: the training data gave two versions of the same examples, as random augmentation does; the "
            "curvature of a mean loss needs fixed examples: make the task's train data without augmentation"
        )


def _read(dataset: Any, indices: range, collate: Any, whole: bool) -> Any:
    items = [dataset[index] for index in indices]
    return collate(items) if whole else [collate(item) for item in items]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return not isinstance(one, (int, float, str)) or one == other

"""A task: one model with its loss and its data, seen as a function of the flat weight vector."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from weightbank.errors import DataError
from weightbank.layout import Layout, Where, trainable
from weightbank.types import Batch, Batches, Flat, Inputs, Loss

Split = Literal["train", "test"]
Source = Batches | Dataset[Any] | tuple[Tensor, Tensor]


class TensorBatches:
    """Batches of two tensors with equal first dimension; iterate it as often as you like.

    With `shuffle`, each pass takes the next permutation of `generator`, so an equally seeded one repeats the passes.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"{len(x)} inputs and {len(y)} targets came; wanted equally many and at least one")
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size}; wanted at least 1")
        self.x, self.y, self.batch_size, self.shuffle = x, y, batch_size, shuffle
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.shuffle:
            for start in range(0, len(self.x), self.batch_size):
                yield self.x[start : start + self.batch_size], self.y[start : start + self.batch_size]
            return
        order = torch.randperm(len(self.x), generator=self.generator)
        for start in range(0, len(self.x), self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield self.x[chosen], self.y[chosen]


class Task:
    """A named model with its loss and its train and test data.

    Args:
        name: what reports call it.
        model: any `nn.Module`; its own weights stay put whatever this library evaluates.
        loss: mean loss of a batch, `loss(model(x), y) -> scalar`, such as `F.cross_entropy`.
        train: a `DataLoader` or any re-iterable of (x, y) batches, a map-style `Dataset`, or a pair of tensors;
            x may be a tensor, a tuple (positional inputs) or a dict (keyword inputs).
        test: the same for held-out data.
        where: which parameters make up θ; the trainable ones by default.
        batch_size: for a pair of tensors or a `Dataset`; training pairs are reshuffled each pass from seed 0.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        loss: Loss,
        train: Source,
        test: Source,
        *,
        where: Where = trainable,
        batch_size: int = 128,
    ) -> None:
        if not isinstance(model, nn.Module) or not callable(loss):
            raise DataError(
                f"Task({name!r}): a {type(model).__name__} came for the model and a {type(loss).__name__} for the loss"
                "; wanted an nn.Module and a function such as torch.nn.functional.cross_entropy"
            )
        self.name, self.model, self.loss, self.where, self.batch_size = name, model, loss, where, batch_size
        self.train = as_batches(train, batch_size, shuffle=True)
        self.test = as_batches(test, batch_size, shuffle=False)

    @cached_property
    def layout(self) -> Layout:
        """Which weight stands where in θ; fixed when first asked for."""
        return Layout.of(self.model, where=self.where)

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lives."""
        return next(self.model.parameters()).device

    def theta(self) -> Flat:
        """A fresh copy of the model's present weights, shape (P,)."""
        return self.layout.ravel(self.model)

    def predict(self, theta: Flat, x: Inputs, *, buffers: Mapping[str, Tensor] | None = None) -> Any:
        """The model's output for inputs `x` with the weights `theta`, in evaluation mode (no dropout).

        `buffers` replaces buffers by name, e.g. refreshed BatchNorm statistics. The model's own weights, buffers and
        training flags are as before afterwards. Differentiable in `theta`.
        """
        state: dict[str, Tensor] = self.layout.unravel(theta)
        if buffers is not None:
            state.update(buffers)
        args, kwargs = as_call(to_device(x, theta.device))
        with evaluating(self.model):
            return torch.func.functional_call(self.model, state, args, kwargs)

    def batches(self, split: Split = "train") -> Iterator[tuple[Inputs, Tensor]]:
        """One pass over the batches of a split, moved to the model's device; an empty split is a `DataError`."""
        return checked_batches(self.train if split == "train" else self.test, self.device, f"{self.name}: {split} data")

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {type(self.model).__name__}, {self.layout.size:,} weights)"


def as_batches(source: Source, batch_size: int, *, shuffle: bool) -> Batches:
    """Turn what users have (loader, dataset, pair of tensors) into a re-iterable of (x, y) batches."""
    if isinstance(source, tuple):
        if len(source) != 2 or not all(isinstance(part, Tensor) for part in source):
            raise DataError(
                "a tuple of data must be (inputs, targets), two tensors; wrap anything else in a DataLoader"
            )
        x, y = cast(tuple[Tensor, Tensor], source)
        return TensorBatches(x, y, batch_size, shuffle=shuffle)
    if isinstance(source, Dataset) and not isinstance(source, torch.utils.data.IterableDataset):
        generator = torch.Generator().manual_seed(0)
        return DataLoader(source, batch_size, shuffle=shuffle, generator=generator if shuffle else None)
    if isinstance(source, Iterator):
        raise DataError("an iterator can be read only once: pass a DataLoader, a list of batches, or a pair of tensors")
    return source


def checked_batches(source: Batches, device: torch.device, what: str) -> Iterator[tuple[Inputs, Tensor]]:
    """The (x, y) pairs of one pass, on `device`; `DataError` if there are none or they are not pairs."""
    empty = True
    for batch in source:
        yield as_pair(batch, device, what)
        empty = False
    if empty:
        raise DataError(f"{what}: no batch came; wanted at least one (is the loader empty or already used up?)")


def as_pair(batch: Batch, device: torch.device, what: str) -> tuple[Inputs, Tensor]:
    """One batch as (x, y) on `device`."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise DataError(f"{what}: a batch must be a pair (x, y) with y a tensor; a {type(batch).__name__} came")
    return to_device(batch[0], device), batch[1].to(device)


def to_device(x: Any, device: torch.device) -> Any:
    """Move the tensors of an input to `device`."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, Mapping):
        return {key: to_device(value, device) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)(to_device(value, device) for value in x)
    return x


def as_call(x: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a model: dicts are keywords, tuples and lists positions."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, (tuple, list)) else ((x,), {})


def apply(model: nn.Module, x: Inputs) -> Any:
    """`model(x)` for a tensor, `model(*x)` for a tuple, `model(**x)` for a dict."""
    args, kwargs = as_call(x)
    return model(*args, **kwargs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of a `with` block; each module's own flag is put back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

"""Training examples in batches of a wanted size, and single examples out of a batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightbank.errors import DataError
from weightbank.task import Task
from weightbank.types import Inputs


def batches(
    task: Task, images: int | None = None, batch_size: int | None = None, *, again: bool = False
) -> Iterator[tuple[Inputs, Tensor]]:
    """Training batches of at most `batch_size` examples, `images` in all; loader batches are cut, never joined.

    An example is one entry of the target's first dimension. Tensors among the inputs whose first dimension is as long
    are cut alike, others are passed whole; a batch none of whose inputs can be cut stays whole.

    Args:
        task: whose training data.
        images: stop after so many examples; None is one pass, or no end with `again`.
        batch_size: None takes batches as they come.
        again: begin another pass when one ends.
    """
    for name, number in (("images", images), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise DataError(f"{name}={number}; wanted at least 1")
    left = images
    while left is None or left > 0:
        for x, y in task.batches("train"):
            count = len(Examples.of(x, y))
            if left is not None:
                count = min(count, left)
                left -= count
            yield from _cut(x, y, count, batch_size)
            if left == 0:
                return
        if not again:
            return


@dataclass(frozen=True)
class Examples:
    """A batch taken apart: the tensors that have one row per example, and where they go back in."""

    x: Any
    y: Tensor

    @classmethod
    def of(cls, x: Inputs, y: Tensor) -> "Examples":
        """Raises `DataError` for targets without examples."""
        if y.ndim == 0 or len(y) == 0:
            raise DataError(f"targets of shape {tuple(y.shape)} came; wanted one or more examples as first dimension")
        return cls(x, y)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def separable(self) -> bool:
        """Whether any input has one row per example."""
        return len(self.rows()) > 1

    def rows(self) -> list[Tensor]:
        """The targets, then every input tensor with as many rows."""
        return [self.y, *(tensor for tensor in _tensors(self.x) if self._has_rows(tensor))]

    def put(self, rows: list[Tensor]) -> tuple[Inputs, Tensor]:
        """The batch with other rows in their places, as (x, y)."""
        y, *inputs = rows
        given = iter(inputs)
        return _mapped(self.x, lambda tensor: next(given) if self._has_rows(tensor) else tensor), y

    def slice(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        """Examples number `start` to `stop - 1`, as (x, y)."""
        return self.put([tensor[start:stop] for tensor in self.rows()])

    def _has_rows(self, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == len(self.y)


def _cut(x: Inputs, y: Tensor, count: int, batch_size: int | None) -> Iterator[tuple[Inputs, Tensor]]:
    examples = Examples.of(x, y)
    size = count if batch_size is None else batch_size
    if not examples.separable or (count == len(y) and size >= count):
        yield x, y
        return
    for start in range(0, count, size):
        yield examples.slice(start, min(start + size, count))


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from _tensors(value)
    elif isinstance(x, (tuple, list)):
        for value in x:
            yield from _tensors(value)


def _mapped(x: Any, change: Any) -> Any:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {key: _mapped(value, change) for key, value in x.items()}
    if isinstance(x, (tuple, list)):
        return type(x)([_mapped(value, change) for value in x])
    return x

"""Endless minibatches of a task, and examples held back from its training data to judge by; never its test data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from weightbank.errors import DataError, ResumeError
from weightbank.task import Source, Task, TensorBatches, as_batches, as_pair
from weightbank.types import Batch, Batches, Inputs

SHARE, MOST = 0.1, 2_000
"""Of the training examples so many are held back, at most."""


@dataclass
class Rows:
    """Minibatches of some rows of two tensors, in a new random order each pass; the tensors are not copied."""

    x: Tensor
    y: Tensor
    index: Int64[Tensor, " n"]
    batch_size: int
    generator: torch.Generator | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.index
        if self.generator is not None:
            order = order[torch.randperm(len(order), generator=self.generator)]
        for chosen in torch.split(order, self.batch_size):
            yield self.x[chosen], self.y[chosen]


class Stream:
    """Minibatches without end; its place can be saved and found again."""

    def __init__(self, name: str, source: Batches, generator: torch.Generator | None, device: torch.device) -> None:
        self.name, self._source, self._device = name, source, device
        self._generator = generator
        self._iterator: Iterator[Batch] | None = None
        self._start: Tensor | None = None
        self._done = 0

    def next(self) -> tuple[Inputs, Tensor]:
        """The next minibatch on the device; `DataError` when a pass has none."""
        for _ in range(2):
            if self._iterator is None:
                self._start = torch.get_rng_state() if self._generator is None else self._generator.get_state()
                self._iterator, self._done = iter(self._source), 0
            batch = next(self._iterator, None)
            if batch is not None:
                self._done += 1
                return as_pair(batch, self._device, f"{self.name}: train data")
            self._iterator = None
        raise DataError(f"{self.name}: no batch came; wanted at least one (is the loader empty or already used up?)")

    def state_dict(self) -> dict[str, Any]:
        """How many minibatches of which pass are done."""
        return {"start": self._start, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the same place; sources without a generator draw from the global one, which is moved for that."""
        self._start, self._done, self._iterator = state["start"], int(state["done"]), None
        if self._start is None:
            return
        (torch.default_generator if self._generator is None else self._generator).set_state(self._start)
        self._iterator = iter(self._source)
        for _ in range(self._done):
            if next(self._iterator, None) is None:
                raise ResumeError(f"{self.name}: the data have fewer minibatches than when the run was stopped")


def split(task: Task, *, seed: int, validation: Source | None = None) -> tuple[Stream, Batches]:
    """A stream of a task's training data, and batches to judge by: `validation`, or a tenth held back of the former.

    At most 2,000 examples are held back, chosen by the seed. Raises `DataError` for training data that cannot be cut:
    then pass validation data.
    """
    generator = torch.Generator().manual_seed(seed)
    source = task.train
    if validation is not None:
        own = getattr(source, "generator", None)
        judge = as_batches(validation, task.batch_size, shuffle=False)
        return Stream(task.name, source, own if isinstance(own, torch.Generator) else None, task.device), judge
    if isinstance(source, TensorBatches):
        train, held = _cut(len(source.x), generator, task.name)
        order = generator if source.shuffle else None
        rows = Rows(source.x, source.y, train, source.batch_size, order)
        return Stream(task.name, rows, order, task.device), Rows(source.x, source.y, held, 500, None)
    if isinstance(source, DataLoader) and isinstance(source.sampler, RandomSampler | SequentialSampler):
        train, held = _cut(len(source.dataset), generator, task.name)  # type: ignore[arg-type]
        shuffled = isinstance(source.sampler, RandomSampler)
        loader = _loader(source, train, generator if shuffled else None)
        return Stream(task.name, loader, generator, task.device), _loader(source, held, None)
    if isinstance(source, Sequence) and len(source) >= 2:
        held_batches = range(0, len(source), min(round(1 / SHARE), len(source)))
        rest = [batch for number, batch in enumerate(source) if number not in held_batches]
        return Stream(task.name, rest, None, task.device), [source[number] for number in held_batches]
    raise DataError(
        f"{task.name}: nothing can be held back from a {type(source).__name__}; pass "
        f"validation={{{task.name!r}: data}} that is neither training nor test data"
    )


def _cut(count: int, generator: torch.Generator, name: str) -> tuple[Tensor, Tensor]:
    held = min(max(1, round(SHARE * count)), MOST)
    if count < 2:
        raise DataError(f"{name}: {count} training examples; at least two are needed, one to judge by")
    order = torch.randperm(count, generator=generator)
    return order[held:], order[:held].sort().values


def _loader(source: DataLoader[Any], index: Tensor, generator: torch.Generator | None) -> DataLoader[Any]:
    return DataLoader(
        Subset(source.dataset, index.tolist()),
        batch_size=source.batch_size,
        shuffle=generator is not None,
        generator=generator,
        num_workers=source.num_workers,
        collate_fn=source.collate_fn,
        drop_last=source.drop_last and generator is not None,
    )

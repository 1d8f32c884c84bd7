"""One data set read again and again, once per draw or group of draws, always in the same order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from weightbank.errors import DataError
from weightbank.evaluation.forward import Forward
from weightbank.evaluation.outputs import class_axis, labelled, log_probabilities, numbers, tensor_of
from weightbank.task import Source, Task, as_batches, checked_batches, to_device
from weightbank.types import Inputs

Foreign = Source | Tensor | Iterable[Inputs]
"""Inputs without a wish for labels: a tensor, or whatever a `Task` takes, or batches of inputs alone."""


@dataclass
class Pass:
    """What one group of k draws predicts: rows (k, N, C) of log-probabilities or (k, N, ...) of numbers, float64.

    The rows are the reader's own memory, free to be overwritten, until the next pass.
    """

    rows: Float64[Tensor, "k N *D"]
    losses: list[float]


class Labelled:
    """Batches of (x, y), every pass checked to bring the targets of the first.

    Holds the targets, one float64 row per example and draw of a group, and nothing else.
    """

    def __init__(self, task: Task, source: Source, what: str) -> None:
        self.source = as_batches(source, task.batch_size, shuffle=False)
        self._task, self._what = task, what
        self._rows = _Rows(what)
        self._targets: list[Tensor] = []
        self.targets: Shaped[Tensor, "N *D"] = torch.empty(0)
        self.axis: int | None = None

    @property
    def regression(self) -> bool:
        """Whether targets are floating numbers; known after the first pass."""
        return self.axis is None

    def read(self, forward: Forward, draw: int, count: int) -> Pass:
        """One pass for draws number `draw` to `draw + count - 1`; losses, for regression, are means over examples.

        Raises `DataError` for empty data, targets unlike those of the first pass, shapes that do not fit, and NaN.
        """
        start, examples = 0, 0
        losses = [0.0] * count
        self._rows.start(count)
        for x, y in checked_batches(self.source, self._task.device, self._what):
            outputs = forward(x)
            if not self._rows.complete and start == 0 and not y.is_floating_point():
                self.axis = class_axis(tensor_of(outputs[0]), y)
            for i, output in enumerate(outputs):
                if y.is_floating_point():
                    rows, targets = numbers(tensor_of(output), y)
                    losses[i] += float(self._task.loss(output, y)) * len(y)
                else:
                    rows, targets = labelled(tensor_of(output), y, self.axis if self.axis is not None else 1)
                self._rows.put(rows, i, start)
            self._same(targets, start)
            start += len(targets)
            examples += len(y)
        if not self._rows.complete:
            if start == 0:
                raise DataError(f"{self._what}: all positions carry the label to ignore; wanted at least one label")
            self.targets = torch.cat(self._targets)
            self._targets = []
        rows = self._rows.finish(start, draw)
        return Pass(rows, [loss / examples for loss in losses])

    def _same(self, targets: Tensor, start: int) -> None:
        if not self._rows.complete:
            if targets.is_floating_point() and not bool(targets.isfinite().all()):
                raise DataError(f"{self._what}: {int((~targets.isfinite()).sum())} targets are NaN or infinite")
            if self._targets and targets.dtype != self._targets[0].dtype:
                raise DataError(f"{self._what}: floating and integer targets are mixed; wanted one kind")
            self._targets.append(targets)
        elif not torch.equal(targets, self.targets[start : start + len(targets)]):
            raise DataError(
                f"{self._what}: examples {start} to {start + len(targets) - 1} have other targets than in the first "
                "pass; every draw must see the same examples in the same order: make the loader with shuffle=False"
            )


class Unlabelled:
    """Batches of foreign inputs, labels dropped, every pass checked by sums to bring the inputs of the first."""

    def __init__(self, task: Task, source: Foreign, what: str) -> None:
        self._task, self._what = task, what
        self.source: Iterable[Any]
        if isinstance(source, Tensor):
            self.source = torch.split(source, task.batch_size)
        elif isinstance(source, (tuple, Dataset, Iterator)):
            self.source = as_batches(source, task.batch_size, shuffle=False)
        else:
            self.source = source
        self._rows = _Rows(what)
        self._sums: list[list[float]] = []

    def read(self, forward: Forward, axis: int, draw: int, count: int) -> Pass:
        """One pass for draws number `draw` to `draw + count - 1`, classes on `axis`; there are no losses."""
        start = 0
        self._rows.start(count)
        for batch, x in enumerate(self._inputs()):
            self._same(_sums(x), batch)
            outputs = [log_probabilities(tensor_of(output), axis) for output in forward(x)]
            for i, rows in enumerate(outputs):
                self._rows.put(rows, i, start)
            start += len(outputs[0])
        if start == 0:
            raise DataError(
                f"{self._what}: no batch came; wanted at least one (is the loader empty or already used up?)"
            )
        return Pass(self._rows.finish(start, draw), [])

    def _inputs(self) -> Iterator[Inputs]:
        for batch in self.source:
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            yield to_device(x, self._task.device)

    def _same(self, sums: list[float], batch: int) -> None:
        if not self._rows.complete:
            self._sums.append(sums)
        elif batch >= len(self._sums) or self._sums[batch] != sums:
            raise DataError(
                f"{self._what}: batch {batch} has other inputs than in the first pass; every draw must see the same "
                "examples in the same order: make the loader with shuffle=False and without random augmentation"
            )


class _Rows:
    """Rows of k draws, grown in the first pass and filled in place in later ones."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._parts: list[list[Tensor]] = []
        self._buffer: Tensor | None = None
        self._bad: list[int] = []
        self._count = 0

    @property
    def complete(self) -> bool:
        """Whether a first pass has ended."""
        return self._buffer is not None

    def start(self, count: int) -> None:
        self._count = count
        self._bad = [0] * count
        self._parts = [[] for _ in range(count)]

    def put(self, rows: Float[Tensor, "B *D"], i: int, start: int) -> None:
        """Rows of draw `i` of the group, from example `start` on."""
        like = self._buffer[0] if self._buffer is not None else (self._parts[i] or [rows])[0]
        if rows.shape[1:] != like.shape[1:]:
            raise DataError(
                f"{self._what}: outputs of {tuple(rows.shape[1:])} numbers per example came after "
                f"{tuple(like.shape[1:])}; every example needs equally many"
            )
        self._bad[i] += int(rows.isnan().reshape(len(rows), -1).any(-1).sum()) if len(rows) else 0
        if self._buffer is None:
            self._parts[i].append(rows)
        elif start + len(rows) <= self._buffer.shape[1]:
            self._buffer[i, start : start + len(rows)] = rows
        else:
            raise DataError(
                f"{self._what}: more than the {self._buffer.shape[1]} examples of the first pass came; every pass must "
                "bring the same ones"
            )

    def finish(self, total: int, draw: int) -> Float64[Tensor, "k N *D"]:
        if self._buffer is None:
            joined = [torch.cat(parts) for parts in self._parts]
            self._buffer = joined[0][None] if len(joined) == 1 else torch.stack(joined)
            self._parts = []
        if total != self._buffer.shape[1]:
            raise DataError(
                f"{self._what}: {total} examples came after {self._buffer.shape[1]} in the first pass; every pass must "
                "bring the same ones"
            )
        for i, bad in enumerate(self._bad):
            if bad:
                raise DataError(
                    f"{self._what}: draw {draw + i} gave NaN or infinite outputs for {bad} of {total} examples "
                    "(draws count from 0); look at the weights it was drawn from, or make the law narrower"
                )
        return self._buffer[: self._count]


def _sums(x: Any) -> list[float]:
    """A fingerprint of inputs: the float64 sum of each tensor in them."""
    if isinstance(x, Tensor):
        return [float(x.sum(dtype=torch.float64))]
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, (tuple, list)) else ()
    return [number for part in parts for number in _sums(part)]

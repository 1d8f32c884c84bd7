"""Stored rows X of shape (K, P), wherever they lie, read by blocks of columns."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.store import RowLog
from weightbank.store.arrays import ArrayFile
from weightbank.types import Rows


@runtime_checkable
class RowSource(Protocol):
    """K rows of P numbers; a block is `rows` x `columns`, where `columns` starts at a multiple of 16,384."""

    @property
    def count(self) -> int:
        """K."""
        ...

    @property
    def size(self) -> int:
        """P."""
        ...

    def read(self, rows: slice, columns: slice, out: Float[Tensor, "R W"]) -> None:
        """Fill `out` with one block, in float32."""
        ...


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Rows held in memory."""

    tensor: Rows

    @property
    def count(self) -> int:
        return self.tensor.shape[0]

    @property
    def size(self) -> int:
        return self.tensor.shape[1]

    def read(self, rows: slice, columns: slice, out: Float[Tensor, "R W"]) -> None:
        out.copy_(self.tensor[rows, columns])


@dataclass(frozen=True, eq=False)
class LogRows:
    """Some rows of a log: those whose numbers are in `numbers`, an increasing range."""

    log: RowLog
    numbers: range

    @property
    def count(self) -> int:
        return len(self.numbers)

    @property
    def size(self) -> int:
        return self.log.size

    def read(self, rows: slice, columns: slice, out: Float[Tensor, "R W"]) -> None:
        self.log.read(self.numbers[rows], columns, out)


@dataclass(frozen=True, eq=False)
class FileRows:
    """The rows of a two-dimensional array in a `.safetensors` file."""

    file: ArrayFile
    name: str

    @property
    def count(self) -> int:
        return int(self.file.shapes[self.name][0])

    @property
    def size(self) -> int:
        return int(self.file.shapes[self.name][1])

    def read(self, rows: slice, columns: slice, out: Float[Tensor, "R W"]) -> None:
        start, stop, _ = columns.indices(self.size)
        chosen = range(self.count)[rows]
        out.copy_(self.file.read_columns(self.name, start, stop, rows=chosen).to(torch.float32))

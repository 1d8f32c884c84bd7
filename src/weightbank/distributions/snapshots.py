"""The recorded iterates themselves as a law: a snapshot ensemble, free because the rows are there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weightbank.distributions.factor import Factor, Scaled
from weightbank.distributions.sources import RowSource
from weightbank.errors import StoreError
from weightbank.layout import Layout
from weightbank.types import Draws, Flat


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Equal probability on each of K iterates θ_k = reference + row k."""

    layout: Layout
    reference: Flat
    rows: RowSource

    def mean(self) -> Flat:
        """The average iterate, shape (P,); one pass."""
        return self._moments()[0]

    def variance(self) -> Flat:
        """The variances over the K iterates (divided by K), shape (P,); one pass."""
        return self._moments()[1]

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` different iterates, evenly spread over the run (so no randomness), shape (S, P).

        Raises `StoreError` if there are fewer than `count`.
        """
        out = torch.empty(self._checked(count), self.layout.size)
        for row, theta in zip(out, self.draws(count), strict=True):
            row.copy_(theta)
        return out

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same iterates one by one, reading one row at a time."""
        self._checked(count)
        out = torch.empty(1, self.layout.size)
        for draw in range(count):
            number = self.rows.count - 1 - (draw * self.rows.count) // count
            self.rows.read(slice(number, number + 1), slice(None), out)
            yield self.reference + out[0]

    def _checked(self, count: int) -> int:
        if not 1 <= count <= self.rows.count:
            raise StoreError(f"{count} snapshots asked for; there are {self.rows.count}")
        return count

    def _moments(self) -> tuple[Flat, Flat]:
        offset, variance = column_moments(self.rows)
        return self.reference + offset, variance


def column_moments(rows: RowSource) -> tuple[Flat, Flat]:
    """Mean and variance (divided by K) of each column of the rows, summed in float64; one pass."""
    mean, variance = torch.empty(rows.size), torch.empty(rows.size)
    for columns, block in Factor(rows, Scaled(rows.count), torch.zeros(1).expand(rows.size)).blocks(torch.float64):
        center = block.mean(0)
        mean[columns] = center.to(torch.float32)
        variance[columns] = block.sub_(center).square_().mean(0).to(torch.float32)
    return mean, variance

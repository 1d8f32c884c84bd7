"""All mass on one weight vector: the ordinary trained network."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weightbank.layout import Layout
from weightbank.types import Draws, Flat


@dataclass(frozen=True, eq=False)
class Point:
    """The law that puts probability one on `theta`, shape (P,)."""

    theta: Flat
    layout: Layout

    def __post_init__(self) -> None:
        self.layout.check(self.theta)

    def mean(self) -> Flat:
        """θ itself."""
        return self.theta

    def variance(self) -> Flat:
        """Zero."""
        return torch.zeros_like(self.theta)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` views of θ, shape (S, P), no copy."""
        return self.theta.expand(count, -1)

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """θ, `count` times."""
        return iter([self.theta] * count)

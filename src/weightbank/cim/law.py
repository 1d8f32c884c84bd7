"""What every law of a chip answers alike: where its weights stand, its moments, its draws as rows, its rest."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from weightbank.cim.cells import Cells
from weightbank.cim.device import Device
from weightbank.layout import Layout
from weightbank.types import Draws, Flat


@dataclass(frozen=True, eq=False)
class OnCells(ABC):
    """A law of θ for weights on the cells of a device. A draw is one chip at one inference."""

    cells: Cells
    batch_norm: ClassVar[Literal["keep"]] = "keep"
    """For `evaluate`: a chip's digital BatchNorm statistics are those it was given; nobody collects them anew."""

    @abstractmethod
    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """`count` chips one at a time, each (P,); the vector may be reused for the next."""

    @property
    @abstractmethod
    def _moments(self) -> tuple[Flat, Flat]:
        """Mean and variance, each (P,)."""

    @property
    def device(self) -> Device:
        """What it was programmed on."""
        return self.cells.device

    @property
    def layout(self) -> Layout:
        """Which weight stands where."""
        return self.cells.layout

    def mean(self) -> Flat:
        """E[θ], shape (P,): the weights themselves, but for rounding, measured mean errors, faults and drift."""
        return self._moments[0]

    def variance(self) -> Flat:
        """The variances, shape (P,): scale² Σ_i 4^(-i m) σ_i² where errors are plain; exact but where noted."""
        return self._moments[1]

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` chips, shape (S, P)."""
        out = torch.empty(count, self.layout.size, dtype=self.cells.theta.dtype)
        for row, theta in zip(out, self.draws(count, generator=generator), strict=True):
            row.copy_(theta)
        return out

    def at_rest(self) -> tuple["OnCells", Flat | None]:
        """The same law without read noise, and the standard deviation (P,) that each inference adds; None if none."""
        if not self.device.read_noise:
            return self, None
        cells = replace(self.cells, device=replace(self.device, read_noise=0.0))
        return replace(self, cells=cells), self.cells.reading()

"""A programmed chip as a law over θ: exact moments, one normal per weight (two widths of error, arXiv 2202.08395)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from weightbank.cim.cells import WHOLE, WRITE, Cells, Number
from weightbank.cim.device import Device
from weightbank.cim.law import OnCells
from weightbank.distributions.distribution import seed_of
from weightbank.errors import LayoutError
from weightbank.layout import Layout
from weightbank.task import Task
from weightbank.types import Flat


def program(
    place: Task | Layout, device: Device, verified: Bool[Tensor, "*M P"] | None = None, *, theta: Flat | None = None
) -> "Chip":
    """The weights of a task, or `theta` of shape (P,), written to `device`.

    verified: the weights (P,) or single cells (M, P), the most significant first, whose error is `verified_sigma`
        instead of `sigma`; None for none of them. Where a weight is digital it says nothing.

    Raises `LayoutError` for masks or weights of another shape, `NonFiniteError` for NaN or infinite weights.
    """
    return Chip(Cells.of(place, device, theta), verified)


@dataclass(frozen=True, eq=False)
class Chip(OnCells):
    """The law of θ on a device that was programmed once and `verified` where the mask is True.

    A draw is one chip at one inference. Equally seeded generators give differently verified chips the same standard
    normals, stuck cells and drift, so that their differences are those of the programming.

    `evaluate` leaves a chip's digital BatchNorm statistics as they are; batch_norm="refresh" collects them anew on it.
    """

    verified: Bool[Tensor, "*M P"] | None = None

    def __post_init__(self) -> None:
        shapes = ((self.layout.size,), (self.device.cells, self.layout.size))
        if self.verified is not None and tuple(self.verified.shape) not in shapes:
            raise LayoutError(f"verified has shape {tuple(self.verified.shape)}; wanted {shapes[0]} or {shapes[1]}")
        if self.verified is not None and self.verified.dtype != torch.bool:
            raise LayoutError(
                f"verified holds {self.verified.dtype}; wanted a mask (torch.bool), such as select(rank(scores), 0.05)"
            )

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same chips one at a time, in one reused vector: one normal per weight; per cell with faults or drift."""
        seed = seed_of(generator)
        mean, deviation = (self.mean(), self._deviation) if self.device.gaussian else (self.cells.theta, None)
        out, normal = torch.empty_like(mean), torch.empty_like(mean)
        for number in range(count):
            if deviation is None:
                yield self.cells.draw(seed, number, _Normal(self, seed, number))
                continue
            torch.randn(len(normal), generator=self.cells.stream(seed, number, WHOLE), out=normal)
            yield torch.addcmul(mean, deviation, normal, out=out)

    def error(self, row: int, level: Flat | None) -> tuple[Number, Number]:
        """Mean and variance of the written error of cell `row` holding `level`, in level steps."""
        bias, std = self.device.spread(level)
        if self.verified is None:
            return bias, std**2
        good_bias, good_std = self.device.spread(level, verified=True)
        chosen = self.verified if self.verified.ndim == 1 else self.verified[row]
        like = self.cells.theta
        variance = torch.where(chosen, like.new_tensor(0.0) + good_std**2, like.new_tensor(0.0) + std**2)
        if isinstance(bias, float) and isinstance(good_bias, float):
            return bias, variance
        return torch.where(chosen, like.new_tensor(0.0) + good_bias, like.new_tensor(0.0) + bias), variance

    @cached_property
    def _moments(self) -> tuple[Flat, Flat]:
        return self.cells.moments(self.error)

    @cached_property
    def _deviation(self) -> Flat:
        return self._moments[1].sqrt()


@dataclass(frozen=True)
class _Normal:
    """Normal written errors of single cells."""

    chip: Chip
    seed: int
    number: int

    def __call__(self, row: int, side: int, level: Flat, held: Flat | None) -> Flat:
        bias, variance = self.chip.error(row, level)
        generator = self.chip.cells.stream(self.seed, self.number, WRITE, row, side)
        errors = bias + variance**0.5 * torch.randn(len(level), generator=generator, dtype=level.dtype)
        return errors if held is None else torch.where(held.isnan(), errors, held - level)

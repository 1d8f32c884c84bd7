"""Another law's draws, rounded to a number format: what a posterior or a point is worth in few bits."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.distributions.distribution import WeightDistribution, each_draw, seed_of
from weightbank.distributions.packed import PackedWeights
from weightbank.distributions.point import Point
from weightbank.errors import FormatError
from weightbank.formats import Format, MiniFloat, Native, Rounding, format_of
from weightbank.formats.blocks import tiling
from weightbank.formats.coded import Coded
from weightbank.formats.native import BITS
from weightbank.formats.rounding import key
from weightbank.layout import Layout
from weightbank.types import Draws, Flat

ESTIMATED_FROM = 16
"""Draws of the inner law behind an estimated variance: ± 35 % of the rounding part, much less summed over weights."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """The law of Q(θ), θ ~ `law`, every parameter tensor rounded to `format`.

    With stochastic rounding of a point, mean and variance are exact: a weight between the neighbours l and h of its
    grid has the variance (h - θ)(θ - l) = Δ² f (1 - f), Δ = h - l, f = (θ - l) / Δ (SWALP, arXiv 1904.11943, eq. 1),
    and the mean θ, or the end of the grid where it saturates. With nearest rounding of a point both are exact, too.
    Of any other law the mean is taken to be the inner one, and the variance the inner one plus E[(Q(θ) - θ)²],
    estimated from 16 draws: right for stochastic rounding within the grid; for nearest rounding as long as the law is
    wider than a step, so that its error is not correlated with θ.

    law, format: see above; `format` may be a short name or a repr.
    rounding: "nearest" or "stochastic".
    seed: of stochastic rounding, together with the generator of a draw.
    """

    law: WeightDistribution
    format: Format | str
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", format_of(self.format))
        if self.rounding not in ("nearest", "stochastic"):
            raise FormatError(f"rounding={self.rounding!r}; wanted 'nearest' or 'stochastic'")

    @property
    def layout(self) -> Layout:
        """Which weight stands where."""
        return self.law.layout

    def mean(self) -> Flat:
        """E[Q(θ)], shape (P,): exact for a point, else the mean of the inner law."""
        theta = self.law.mean()
        if not isinstance(self.law, (Point, PackedWeights)):
            return theta
        if self.rounding == "nearest":
            return self._rounded(theta, 0, 0)
        low, high = self._neighbours(theta)
        return torch.minimum(torch.maximum(theta, low), high)

    def variance(self) -> Flat:
        """Var[Q(θ)], shape (P,): exact for a point, else the inner one plus an estimate of what rounding adds."""
        if isinstance(self.law, (Point, PackedWeights)):
            theta = self.law.mean()
            if self.rounding == "nearest":
                return torch.zeros_like(theta)
            low, high = self._neighbours(theta)
            return ((high - theta) * (theta - low)).clamp_(min=0)
        total = self.law.variance().clone()
        generator = torch.Generator().manual_seed(self.seed)
        for number, theta in enumerate(each_draw(self.law, ESTIMATED_FROM, generator)):
            total.add_((self._rounded(theta, number, self.seed) - theta).square_(), alpha=1 / ESTIMATED_FROM)
        return total

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` rounded draws, shape (S, P)."""
        out = torch.empty(count, self.layout.size)
        for row, theta in zip(out, self.draws(count, generator=generator), strict=True):
            row.copy_(theta)
        return out

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same draws one by one, in one reused vector beside the inner law's."""
        seed = seed_of(generator) if self.rounding == "stochastic" else 0
        out: Flat | None = None
        for number, theta in enumerate(each_draw(self.law, count, generator)):
            out = self._rounded(theta, number, seed, out)
            yield out

    def _rounded(self, theta: Flat, number: int, seed: int, out: Flat | None = None) -> Flat:
        out = torch.empty_like(theta) if out is None else out
        for name, part, place in self._parts(theta, out):
            own = key(self.seed ^ seed, name, number) if self.rounding == "stochastic" else None
            self._format.quantize(part, rounding=self.rounding, key=own, out=place)
        return out

    def _neighbours(self, theta: Flat) -> tuple[Flat, Flat]:
        low, high = torch.empty_like(theta), torch.empty_like(theta)
        for (_, part, below), (_, _, above) in zip(self._parts(theta, low), self._parts(theta, high), strict=True):
            first, second = neighbours(self._format, part)
            below.copy_(first)
            above.copy_(second)
        return low, high

    @property
    def _format(self) -> Format:
        assert not isinstance(self.format, str)
        return self.format

    def _parts(self, theta: Flat, out: Flat) -> Iterator[tuple[str, Tensor, Tensor]]:
        for entry in self.layout.entries:
            place = slice(entry.offset, entry.offset + entry.size)
            yield entry.name, theta[place].view(entry.shape), out[place].view(entry.shape)


def neighbours(format: Format, x: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The values of the grid next below and above `x`, equal on the grid and beyond its ends.

    They are where stochastic rounding goes with the smallest and the largest random bits. Raises `FormatError` for a
    format that is neither native nor made of codes.
    """
    if isinstance(format, Native):
        if format.name not in BITS:
            return x, x
        format = MiniFloat(*BITS[format.name])
    if not isinstance(format, Coded):
        raise FormatError(f"{format!r} does not tell its neighbours; sample it instead")
    grid, scale, block = format.codec
    blocks = tiling(block, tuple(x.shape))
    split = blocks.split(x.to(torch.float32))
    exponent = scale.exponents(split)
    found = []
    for bits in (0, -1):
        random = torch.full_like(split, bits, dtype=torch.int32)
        numbers = grid.numbers(grid.codes(split.clone(), exponent, random, x.dtype))
        if not scale.constant:
            numbers = numbers * scale.powers(scale.to_bytes(exponent))[:, None]
        found.append(blocks.join(numbers, tuple(x.shape)))
    return found[0], found[1]

"""Several laws pooled with equal weight: MultiSWAG (Wilson & Izmailov 2020, arXiv 2002.08791)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from weightbank.distributions.distribution import WeightDistribution, check_count, each_draw, seed_of
from weightbank.errors import LayoutError, StoreError
from weightbank.layout import Layout
from weightbank.types import Draws, Flat


def multi(posteriors: Sequence[WeightDistribution]) -> "Mixture":
    """Pool the posteriors of several runs of one model: p(θ) = 1/M Σ_m p_m(θ).

    Raises `LayoutError` when they are not over the same weights.
    """
    if not posteriors:
        raise StoreError("no posteriors came; wanted at least one")
    first = posteriors[0].layout.fingerprint
    for number, posterior in enumerate(posteriors):
        if posterior.layout.fingerprint != first:
            raise LayoutError(f"posterior {number} has layout {posterior.layout.fingerprint}, the first has {first}")
    return Mixture(tuple(posteriors))


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal weight on each of M laws over the same weights."""

    components: tuple[WeightDistribution, ...]

    @property
    def layout(self) -> Layout:
        """The common layout."""
        return self.components[0].layout

    def mean(self) -> Flat:
        """The mean of the components' means, shape (P,)."""
        return self._mean().to(torch.float32)

    def variance(self) -> Flat:
        """Mean of the variances plus variance of the means, shape (P,)."""
        center = self._mean()
        total = torch.zeros_like(center)
        for law in self.components:
            total += law.variance().to(torch.float64) + (law.mean().to(torch.float64) - center).square()
        return (total / len(self.components)).to(torch.float32)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` draws, shape (S, P): stratified, count / M of them from each component."""
        out = torch.empty(check_count(count), self.layout.size)
        for row, theta in zip(out, self.draws(count, generator=generator), strict=True):
            row.copy_(theta)
        return out

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same draws one by one, component after component."""
        seed = seed_of(generator)
        for number, law in enumerate(self.components):
            share = count // len(self.components) + (number < count % len(self.components))
            own = torch.Generator().manual_seed(seed ^ number)
            if share:
                yield from each_draw(law, share, own)

    def _mean(self) -> torch.Tensor:
        total = torch.zeros(self.layout.size, dtype=torch.float64)
        for law in self.components:
            total += law.mean().to(torch.float64)
        return total / len(self.components)

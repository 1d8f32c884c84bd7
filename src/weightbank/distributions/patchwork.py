"""A law whose parameter tensors come from different laws: mixed formats, mixed devices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from weightbank.distributions.distribution import WeightDistribution, each_draw, seed_of
from weightbank.errors import LayoutError
from weightbank.layout import Layout
from weightbank.types import Draws, Flat


@dataclass(frozen=True, eq=False)
class Patchwork:
    """Each parameter tensor follows its slice of a law over all weights; different laws are independent.

    layout: which weight stands where.
    laws: by parameter name, each over all weights of `layout`; the same object for tensors that share a law.
    """

    layout: Layout
    laws: Mapping[str, WeightDistribution]

    def __post_init__(self) -> None:
        """Raise `LayoutError` for missing or unknown parameters, or laws over other weights."""
        if set(self.laws) != set(self.layout.names):
            odd = sorted(set(self.laws) ^ set(self.layout.names))
            raise LayoutError(f"laws and layout differ in the parameters {', '.join(odd[:8])}")
        for name, law in self.laws.items():
            if law.layout.fingerprint != self.layout.fingerprint:
                raise LayoutError(
                    f"the law of '{name}' is over {law.layout.size:,} other weights; wanted this layout's"
                )

    def mean(self) -> Flat:
        """E[θ], shape (P,)."""
        return self._patched({id(law): law.mean() for law in self.laws.values()})

    def variance(self) -> Flat:
        """The marginal variances, shape (P,)."""
        return self._patched({id(law): law.variance() for law in self.laws.values()})

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` draws, shape (S, P)."""
        return torch.stack([draw.clone() for draw in self.draws(count, generator=generator)])

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same draws one at a time."""
        distinct = {id(law): law for law in self.laws.values()}
        streams = {
            number: each_draw(law, count, torch.Generator().manual_seed(seed_of(generator)))
            for number, law in distinct.items()
        }
        for _ in range(count):
            yield self._patched({number: next(stream) for number, stream in streams.items()})

    def _patched(self, whole: Mapping[int, Flat]) -> Flat:
        out = next(iter(whole.values())).clone()
        for name, law in self.laws.items():
            place = self.layout.slice(name)
            out[place] = whole[id(law)][place]
        return out

"""The whole memory of a pool as one weight vector: programmed, recorded and ranked once for all its networks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightbank.distributions.distribution import WeightDistribution, each_draw
from weightbank.errors import LayoutError
from weightbank.layout import Layout
from weightbank.paging.pool import Pool
from weightbank.paging.tenant import Tenant
from weightbank.types import Draws, Flat


def memory_layout(pool: Pool, columns: int = 64) -> Layout:
    """A layout of the pool's N positions as a matrix "memory" of rows of `columns`, and a vector "end" of what is left.

    The rows are for devices with a scale per channel: each is scaled for itself. Raises `LayoutError` for a pool of
    less than one row.
    """
    rows, left = divmod(pool.size, max(columns, 1))
    if columns < 1 or not rows:
        raise LayoutError(f"columns={columns} for {pool.size:,} positions; wanted 1 to {pool.size:,}")
    owner = nn.Module()
    owner.register_parameter("memory", nn.Parameter(torch.empty(rows, columns, device="meta")))
    if left:
        owner.register_parameter("end", nn.Parameter(torch.empty(left, device="meta")))
    return Layout.of(owner)


def memory_of(pool: Pool, vectors: Mapping[str, Tensor] | None = None) -> Tensor:
    """What stands at the N positions, shape (N,); or the sum at each position of `vectors` over the networks.

    vectors: by tenant, shape (P,), such as curvatures h: the loss of all networks together rises by ½ Σ h δ² over the
        positions. Every tenant needs one; `LayoutError` otherwise, and for other sizes.
    """
    generation = pool.generation
    if vectors is None:
        return generation.owner.values().clone()
    if set(vectors) != set(generation.tenants):
        raise LayoutError(f"vectors came for {', '.join(vectors) or 'nobody'}; tenants here: {', '.join(pool)}")
    total = torch.zeros(pool.size)
    for name, tenant in generation.tenants.items():
        tenant.layout.check(vectors[name])
        tenant.placement.add(total, vectors[name].to("cpu", torch.float32))
    return total


@dataclass(frozen=True, eq=False)
class Through:
    """A law over the N positions of a pool, seen through one tenant's placement: a law over its P weights.

    tenant: of the pool, `pool.generation.tenant(name)`.
    law: over the positions: a chip that holds the pool, a posterior of its memory.
    """

    tenant: Tenant
    law: WeightDistribution

    def __post_init__(self) -> None:
        """Raise `LayoutError` for a law over another number of positions than the tenant's placement needs."""
        self.tenant.placement.check(self.law.layout.size)

    @property
    def layout(self) -> Layout:
        """Which weight stands where in the tenant's θ."""
        return self.tenant.layout

    def mean(self) -> Flat:
        """E[θ] of the tenant, shape (P,)."""
        return self._of(self.law.mean())

    def variance(self) -> Flat:
        """The marginal variances, shape (P,)."""
        return self._of(self.law.variance())

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` draws, shape (S, P); equal generators give all tenants the same memory."""
        return torch.stack(list(self.draws(count, generator=generator)))

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same draws one at a time."""
        yield from map(self._of, each_draw(self.law, count, generator))

    def _of(self, memory: Tensor) -> Tensor:
        return self.tenant.placement.gather(memory)

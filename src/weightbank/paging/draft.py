"""The next generation of a pool while it is edited: no reader sees it before it is published."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Int32
from torch import Tensor

from weightbank.errors import LayoutError
from weightbank.formats import Format
from weightbank.paging.owner import Owner
from weightbank.paging.placement import Placement
from weightbank.paging.serve import Generation
from weightbank.paging.statistics import Shared
from weightbank.paging.tenant import Tenant
from weightbank.types import Flat


class Draft:
    """A float32 copy of a pool's N positions, with its tenants.

    What the tenants want is two numbers a position, however many they are: the precision Σ F and the moment Σ F w,
    which is precision times value, as every position stands at the mean of its tenants' weights.
    """

    def __init__(self, generation: Generation, *, align: int, reserve: int) -> None:
        self.format: Format = generation.owner.format
        self.align, self.reserve = align, reserve
        self.publish = True
        """Whether the pool takes this draft at the end of `with pool.edit()`."""
        self.restore(generation)

    def restore(self, generation: Generation) -> None:
        """Begin anew from what readers see."""
        values = generation.owner.values()
        self.values = values.clone() if values.data_ptr() == generation.owner.raw.data_ptr() else values
        self.tenants = dict(generation.tenants)

    @property
    def size(self) -> int:
        """N, the positions."""
        return len(self.values)

    def theta(self, name: str) -> Flat:
        """A tenant's weights, shape (P,)."""
        return self.tenants[name].placement.gather(self.values)

    def occupants(self) -> Int32[Tensor, " N"]:
        """How many tenants stand at each position."""
        count = torch.zeros(self.size, dtype=torch.int32)
        for tenant in self.tenants.values():
            tenant.placement.mark(count)
        return count

    def blocked(self) -> Bool[Tensor, " N"]:
        """Positions that cannot be shared: exclusive ones, and the reserve for such at the end."""
        count = torch.zeros(self.size, dtype=torch.int32)
        for tenant in self.tenants.values():
            tenant.placement.mark(count, exclusive_only=True)
        blocked = count > 0
        blocked[self.size - self.reserve :] = True
        return blocked

    def precision(self, names: Iterable[str] | None = None) -> Flat:
        """Σ F over the tenants (or some of them) at each position; `LayoutError` where importances are not kept."""
        total = torch.zeros(self.size)
        for name in self.tenants if names is None else names:
            tenant = self.tenants[name]
            tenant.placement.add(total, importance_kept(tenant))
        return total

    def shared(self) -> Shared:
        """What a newcomer has to agree with."""
        precision = self.precision()
        return Shared(precision, precision * self.values)

    def admit(self, tenant: Tenant, theta: Flat) -> None:
        """Take a placed tenant in: each of its positions moves to the mean of all who stand there, by importance."""
        precision = tenant.placement.gather(self.precision())
        there = tenant.placement.gather(self.values)
        share = precision / (precision + importance_kept(tenant))
        tenant.placement.put(self.values, theta + share * (there - theta))  # θ itself where nobody else is
        self.tenants[tenant.name] = tenant

    def dismiss(self, name: str) -> None:
        """Take a tenant out: positions nobody else uses become zero, all others keep their value."""
        del self.tenants[name]
        self.values[self.occupants() == 0] = 0

    def move(self, name: str, placement: Placement) -> None:
        """Put a tenant elsewhere, on free positions or its own, with the same weights; nobody else changes."""
        theta = self.theta(name)
        self.tenants[name] = replace(self.tenants[name], placement=placement)
        placement.put(self.values, theta)
        self.values[self.occupants() == 0] = 0

    def rounded(self) -> Owner:
        """The values on the pool's grid; a float32 pool takes the draft's own vector, which must not change then."""
        return Owner.of(self.values, self.format)


def importance_kept(tenant: Tenant) -> Flat:
    """The importance of each weight of a tenant, shape (P,), float32; `LayoutError` where it was not kept."""
    if tenant.importance is None:
        raise LayoutError(
            f"'{tenant.name}' came without importances, so it can be used but not shared anew or tuned: save the pool "
            "with importance=True"
        )
    return tenant.importance.float()

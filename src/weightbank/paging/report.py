"""What a pool holds, in bytes and weights: how much is shared, by how many, and what serving it takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from weightbank.paging.serve import Generation
from weightbank.sizes import readable


@dataclass(frozen=True)
class TenantReport:
    """One network: weights, those at positions of their own by right, those somebody shares, and how it is run."""

    name: str
    weights: int
    exclusive: int
    shared: int
    pages: int
    zero_copy: bool
    bytes_rest: int


@dataclass(frozen=True)
class Report:
    """A pool's memory.

    Attributes:
        format: of a position.
        positions: N. used: by at least one network. reserve: kept for exclusive tensors.
        weights: Σ P of all networks; weights / positions is the packing.
        bytes_owner: of the one shared memory. bytes_rest: buffers beside it. bytes_tables: of page tables and extents.
        bytes_staged: gathered copies of networks that cannot be views, as kept now.
        bytes_apart: the same networks one by one in float32.
        occupancy: positions by number of networks, from none on.
        tenants: one line each.
    """

    format: str
    positions: int
    used: int
    reserve: int
    weights: int
    bytes_owner: int
    bytes_rest: int
    bytes_tables: int
    bytes_staged: int
    bytes_apart: int
    occupancy: Sequence[int]
    tenants: Sequence[TenantReport]

    @property
    def packing(self) -> float:
        """Weights per position."""
        return self.weights / self.positions

    @property
    def saving(self) -> float:
        """Bytes of the networks apart in float32, by bytes of owner, buffers and tables."""
        return self.bytes_apart / (self.bytes_owner + self.bytes_rest + self.bytes_tables)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {**asdict(self), "packing": self.packing, "saving": self.saving}

    def __str__(self) -> str:
        lines = [
            f"{self.weights:,} weights of {len(self.tenants)} networks in {self.positions:,} positions of "
            f"{self.format}: {self.packing:.2f} per position",
            f"{readable(self.bytes_owner)} owner + {readable(self.bytes_rest)} beside it + "
            f"{readable(self.bytes_tables)} tables, {readable(self.bytes_apart)} apart: {self.saving:.1f} times less",
        ]
        for row in self.tenants:
            how = "runs from the pool" if row.zero_copy else "is read from the pool when it runs"
            lines.append(
                f"  {row.name}: {row.weights:,} weights, {row.shared:,} shared, {row.exclusive:,} exclusive; {how}"
            )
        return "\n".join(lines)


def report_of(generation: Generation, reserve: int) -> Report:
    """Count; touches tables only, with one counter per position."""
    owner = generation.owner
    count = torch.zeros(owner.size, dtype=torch.int32)
    for tenant in generation.tenants.values():
        tenant.placement.mark(count)
    rows = []
    for name, tenant in generation.tenants.items():
        placement = tenant.placement
        rows.append(
            TenantReport(
                name=name,
                weights=placement.size,
                exclusive=sum(length for _, length in placement.runs(exclusive_only=True)),
                shared=int((placement.gather(count) > 1).sum()),
                pages=len(placement.pages),
                zero_copy=generation.zero_copy(name),
                bytes_rest=tenant.nbytes_rest,
            )
        )
    placements = [tenant.placement for tenant in generation.tenants.values()]
    return Report(
        format=repr(owner.format),
        positions=owner.size,
        used=int((count > 0).sum()),
        reserve=reserve,
        weights=sum(row.weights for row in rows),
        bytes_owner=owner.nbytes,
        bytes_rest=sum(row.bytes_rest for row in rows),
        bytes_tables=sum(placement.nbytes for placement in placements),
        bytes_staged=generation.staged_bytes,
        bytes_apart=sum(4 * row.weights + row.bytes_rest for row in rows),
        occupancy=torch.bincount(count).tolist() if owner.size else [],
        tenants=rows,
    )

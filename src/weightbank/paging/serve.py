"""Networks ready to run: one generation of the pool, with a module per tenant whose parameters are views of it.

A reader holds a generation by an ordinary reference. The pool only swaps which one is current, so nothing that edits
the pool ever waits for a reader or makes one wait, and Python frees a generation with its last reader.
"""

import threading
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from torch import Tensor, nn
from zlib_ng.zlib_ng import crc32

from weightbank.errors import LayoutError
from weightbank.paging.owner import Owner
from weightbank.paging.streaming import streamed
from weightbank.paging.tenant import Tenant, TenantLaw, assemble
from weightbank.store.arrays import bytes_of
from weightbank.types import Flat


class Lease:
    """The right to run one network of one generation: `with pool.use("digits") as net: y = net(x)`."""

    __slots__ = ("_net", "generation")

    def __init__(self, generation: "Generation", net: nn.Module) -> None:
        self.generation, self._net = generation, net

    def __enter__(self) -> nn.Module:
        return self._net

    def __exit__(self, *exception: object) -> None:
        del self._net, self.generation


class Generation:
    """What all readers see at one time: the owner's bytes and the tenants on them; never changed after it was made.

    Networks whose tensors are runs of numbers in their own dtype get a module of views. Others (pages, codes, another
    dtype) get one that reads each tensor when a layer asks for it; or, if there may be `staging` bytes of copies (None:
    any number), they are gathered into a buffer of their own when first used in this generation, and of such buffers
    at most so many bytes are kept while nobody uses them: the latest used stay longest.
    """

    def __init__(self, number: int, owner: Owner, tenants: Mapping[str, Tenant], *, staging: int | None = 0) -> None:
        self.number, self.owner, self.tenants = number, owner, MappingProxyType(dict(tenants))
        self._staging = staging
        self._staged: dict[str, nn.Module] = {}
        self._lock = threading.Lock()
        self._ready: dict[str, nn.Module] = {}
        for name, tenant in tenants.items():
            views = views_of(tenant, owner)
            if tenant.skeleton is None:
                continue
            if views is not None:
                self._ready[name] = assemble(tenant.skeleton, {**views, **tenant.rest}).eval()
            elif staging == 0:
                net = streamed(tenant, owner)
                if net is not None:
                    self._ready[name] = net.eval()

    def lease(self, name: str) -> Lease:
        """The module of a tenant, in evaluation mode, held together with this generation."""
        net = self._ready.get(name)
        return Lease(self, self._gathered(name) if net is None else net)

    def theta(self, name: str) -> Flat:
        """A tenant's weights as a fresh float32 vector, shape (P,)."""
        tenant = self.tenant(name)
        plain = self.owner.plain
        return tenant.placement.gather(self.owner.values() if plain is None else plain).float()

    def law(self, name: str) -> TenantLaw:
        """A tenant as a law over its weights."""
        tenant = self.tenant(name)
        return TenantLaw(self.theta(name), tenant.layout, tenant)

    def tenant(self, name: str) -> Tenant:
        """The tenant of a name; `LayoutError` lists the names there are."""
        if name not in self.tenants:
            raise LayoutError(f"no tenant '{name}' here; there are: {', '.join(self.tenants) or 'none yet'}")
        return self.tenants[name]

    def zero_copy(self, name: str) -> bool:
        """Whether the network runs from the pool itself."""
        return views_of(self.tenant(name), self.owner) is not None

    @cached_property
    def checksum(self) -> str:
        """The CRC-32 of the owner's bytes, eight hexadecimal digits."""
        return f"{crc32(bytes_of(self.owner.raw)):08x}"

    @property
    def staged_bytes(self) -> int:
        """Bytes gathered into buffers and kept."""
        with self._lock:
            return sum(4 * self.tenants[name].layout.size for name in self._staged)

    def _gathered(self, name: str) -> nn.Module:
        with self._lock:
            net = self._staged.pop(name, None)
            if net is not None:
                self._staged[name] = net  # the latest used stand last
                return net
        tenant = self.tenant(name)
        if tenant.skeleton is None:
            raise LayoutError(
                f"'{name}' was opened without its model: pass models={{{name!r}: model}} to Pool.open, or take its "
                "weights with pool.materialise"
            )
        net = assemble(tenant.skeleton, {**tenant.layout.unravel(self.theta(name)), **tenant.rest}).eval()
        with self._lock:
            self._staged[name] = net
            total = sum(4 * self.tenants[kept].layout.size for kept in self._staged)
            for oldest in list(self._staged):
                if self._staging is None or total <= self._staging:
                    break
                total -= 4 * self.tenants[oldest].layout.size
                del self._staged[oldest]
        return net


def views_of(tenant: Tenant, owner: Owner) -> dict[str, Tensor] | None:
    """A tenant's parameters as views of the owner, by name; None when one of them cannot be a view."""
    plain = owner.plain
    if plain is None:
        return None
    views: dict[str, Tensor] = {}
    for entry in tenant.layout.entries:
        position = tenant.placement.offset(entry.offset, entry.size)
        if position is None or entry.dtype != plain.dtype:
            return None
        views[entry.name] = plain[position : position + entry.size].view(entry.shape)
    return views

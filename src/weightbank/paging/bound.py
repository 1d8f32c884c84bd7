"""A tenant's network over memory that is being trained: its parameters and their gradients are parts of two vectors."""

from collections.abc import Mapping

from torch import Tensor, nn

from weightbank.errors import LayoutError
from weightbank.layout import Layout
from weightbank.paging.tenant import Tenant, assemble, skeleton_of
from weightbank.types import Flat


class Bound:
    """The module of one tenant whose weights are read from `seen` and whose gradients add up in `gradient`, (N,) each.

    Tensors that are float32 runs are views of the two: no copy in either direction. Otherwise `pull` gathers the
    weights and `push` adds their gradients to the pool's; in between, one copy of this network's weights exists.
    """

    def __init__(self, tenant: Tenant, model: nn.Module, seen: Flat, gradient: Flat) -> None:
        layout = Layout.of(model, where=lambda name, parameter: name in tenant.layout.names)
        if layout.fingerprint != tenant.layout.fingerprint:
            raise LayoutError(f"the model of '{tenant.name}' has other weights than the pool holds under this name")
        self.tenant, self._seen, self._gradient = tenant, seen, gradient
        buffers = {name for name, _ in model.named_buffers()}
        self.rest = {name: value.clone() if name in buffers else value for name, value in tenant.rest.items()}
        entries, offset = tenant.layout.entries, tenant.placement.offset
        places = {entry.name: offset(entry.offset, entry.size) for entry in entries}
        self.views = all(places[e.name] is not None and e.dtype == seen.dtype for e in entries)
        tensors = dict(self.rest)
        for entry in entries:
            place = places[entry.name] or 0
            view = seen[place : place + entry.size].view(entry.shape)
            tensors[entry.name] = view if self.views else seen.new_empty(0, dtype=entry.dtype)
        self.net = assemble(skeleton_of(model), tensors)
        own = dict(self.net.named_parameters())
        self._parameters = [(entry, own[entry.name]) for entry in entries]
        for entry, parameter in self._parameters:
            parameter.requires_grad_(True)
            if self.views:
                place = places[entry.name] or 0
                parameter.grad = gradient[place : place + entry.size].view(entry.shape)

    def pull(self) -> None:
        """See the weights as they are in the pool now."""
        if not self.views:
            theta = self.present()
            for (_, parameter), value in zip(self._parameters, self.tenant.layout.unravel(theta).values(), strict=True):
                parameter.data = value

    def push(self) -> None:
        """Add the gradients of the last backward pass to the pool's."""
        if not self.views:
            whole = self._gradient.new_zeros(self.tenant.layout.size)
            for entry, parameter in self._parameters:
                if parameter.grad is not None:
                    whole[entry.offset : entry.offset + entry.size].view(entry.shape).copy_(parameter.grad)
                parameter.grad = None
            self.tenant.placement.add(self._gradient, whole)

    def release(self) -> None:
        """Let go of the copied weights, if there are any."""
        if not self.views:
            for entry, parameter in self._parameters:
                parameter.grad, parameter.data = None, self._seen.new_empty(0, dtype=entry.dtype)

    def present(self) -> Flat:
        """The weights as they are in the pool now, a copy of shape (P,)."""
        return self.tenant.placement.gather(self._seen)

    def buffers(self) -> dict[str, Tensor]:
        """What is not shared, as the training left it; copies of buffers."""
        return {name: value.clone() for name, value in self.rest.items()}

    def keep(self, rest: Mapping[str, Tensor]) -> None:
        """Take buffers as another copy of this network has them."""
        for name, value in rest.items():
            self.rest[name].copy_(value)

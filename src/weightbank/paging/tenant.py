"""A network in the pool: its weights' places, what it does not share, and the law that its shared weights are."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor, nn

from weightbank.distributions import Point
from weightbank.errors import LayoutError
from weightbank.layout import Layout
from weightbank.paging.placement import Placement
from weightbank.types import Flat


@dataclass(frozen=True, eq=False)
class Tenant:
    """One network: everything about it but the numbers at its positions.

    Attributes:
        name: unique in the pool.
        layout: its P weights.
        placement: the position of each.
        rest: what is never shared nor rounded: buffers such as BatchNorm statistics, and parameters outside the layout.
        keys: the keys of its state_dict, and which weight or member of `rest` each of them is.
        importance: of mean one, shape (P,); None in pools opened for serving only.
        scale: the mean of the curvature that importance came from, in loss per squared weight.
        skeleton: its modules without numbers; None until a model is attached.
        notes: plain JSON for whoever stored it.
    """

    name: str
    layout: Layout
    placement: Placement
    rest: Mapping[str, Tensor]
    keys: Mapping[str, str]
    importance: BFloat16[Tensor, " P"] | None
    scale: float
    skeleton: nn.Module | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes_rest(self) -> int:
        """Bytes beside the pool."""
        return sum(tensor.nbytes for tensor in self.rest.values())

    def state_dict(self, theta: Flat) -> dict[str, Tensor]:
        """An ordinary state_dict with fresh tensors, for the weights θ of shape (P,)."""
        own = {**self.rest, **self.layout.unravel(theta)}
        return {key: own[name].clone() for key, name in self.keys.items()}


@dataclass(frozen=True, eq=False, repr=False)
class TenantLaw(Point):
    """What one generation of a pool holds of a network: all mass on one θ, a float32 copy made when asked for."""

    tenant: Tenant

    def __repr__(self) -> str:
        return f"TenantLaw({self.tenant.name!r}, {self.layout.size:,} weights)"


def skeleton_of(model: nn.Module) -> nn.Module:
    """The modules of `model` with parameters and buffers on the meta device: its structure without its numbers.

    Raises `LayoutError` for a model that cannot be copied.
    """
    empty: dict[int, Any] = {
        id(parameter): nn.Parameter(_without_numbers(parameter), requires_grad=False)
        for parameter in model.parameters()
    }
    empty |= {id(buffer): _without_numbers(buffer) for buffer in model.buffers()}
    return _copied(model, empty)


def assemble(skeleton: nn.Module, tensors: Mapping[str, Tensor], *, requires_grad: bool = False) -> nn.Module:
    """A module with the structure of `skeleton` whose parameters and buffers ARE `tensors`, no copy.

    `tensors` may leave out names that another name stands for (tied weights), and non-persistent buffers that hold
    nothing yet keep their place. Only the structure is copied.
    """
    filled: dict[int, Any] = {}
    for name, parameter in skeleton.named_parameters():
        if name not in tensors:
            raise LayoutError(f"the model has a parameter '{name}' that was not stored with the network")
        filled[id(parameter)] = nn.Parameter(tensors[name], requires_grad=requires_grad)
    for name, buffer in skeleton.named_buffers():
        if name not in tensors:
            raise LayoutError(f"the model has a buffer '{name}' that was not stored with the network")
        filled[id(buffer)] = tensors[name]
    return _copied(skeleton, filled)


def rest_of(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Copies of all buffers of `model`, and of its parameters outside `layout`, on the CPU."""
    names = set(layout.names)
    rest = {name: parameter for name, parameter in model.named_parameters() if name not in names}
    return {name: tensor.detach().cpu().clone() for name, tensor in [*rest.items(), *model.named_buffers()]}


def keys_of(model: nn.Module) -> dict[str, str]:
    """For each tensor in the model's state_dict the first name it goes by: tied ones go by one name."""
    first = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    state = model.state_dict(keep_vars=True)
    return {key: first[id(value)] for key, value in state.items() if id(value) in first}


def _without_numbers(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape; `empty_like` would do, but makes torch load 35 MB of Python first."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise LayoutError(
            f"{type(model).__name__} cannot be copied, and a pool needs its structure: {str(error).splitlines()[0]}; "
            "build the model anew, without tensors computed in a forward pass as attributes"
        ) from error

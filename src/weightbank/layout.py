"""A model's weights as one flat vector: names, shapes and offsets, tied weights once."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightbank.errors import LayoutError
from weightbank.types import Flat

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}

Where: TypeAlias = Callable[[str, nn.Parameter], bool]


def trainable(name: str, parameter: nn.Parameter) -> bool:
    """The default choice of weights: those that take gradients; frozen ones stay in the model."""
    return parameter.requires_grad


def everything(name: str, parameter: nn.Parameter) -> bool:
    """Every parameter, frozen ones too."""
    return True


def within(*prefixes: str) -> Where:
    """The parameters of some submodules, e.g. `within("fc2")` for a last layer, tied ones by any of their names.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> Layout.of(model, where=within("1")).names
    ('1.weight', '1.bias')
    """

    def chosen(name: str, parameter: nn.Parameter) -> bool:
        return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)

    return chosen


@dataclass(frozen=True)
class Entry:
    """One parameter's place in the flat vector; `offset` counts weights."""

    name: str
    shape: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The map between a model's parameters and one flat vector θ of `size` weights.

    Parameters stand in the order of `model.named_parameters()`, each flattened row by row. A tensor that the model
    uses under several names is there once, under its first name. Buffers (BatchNorm statistics) are never part of θ.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, model: nn.Module, *, where: Where = trainable) -> "Layout":
        """Lay out the parameters of `model` for which `where(name, parameter)` holds, for one of its names if tied.

        Raises `LayoutError` when nothing is chosen, or a parameter is complex, lazy or not floating.
        """
        entries: list[Entry] = []
        offset = 0
        aliases: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(name)
        for name, parameter in model.named_parameters():
            if isinstance(parameter, nn.UninitializedParameter):
                raise LayoutError(f"'{name}' has no shape yet: run one batch through the lazy model first")
            if not any(where(alias, parameter) for alias in aliases[id(parameter)]):
                continue
            if not parameter.is_floating_point():
                raise LayoutError(f"'{name}' is {parameter.dtype}: only real floating weights can be laid out")
            entries.append(Entry(name, tuple(parameter.shape), offset, parameter.dtype))
            offset += parameter.numel()
        if offset == 0:
            total = sum(1 for _ in model.named_parameters())
            raise LayoutError(
                f"no weights chosen out of {total} parameters of {type(model).__name__}: "
                "unfreeze some (requires_grad) or pass where=weightbank.everything"
            )
        return cls(tuple(entries))

    @cached_property
    def size(self) -> int:
        """P, the number of weights."""
        return self.entries[-1].offset + self.entries[-1].size if self.entries else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in the order of the flat vector."""
        return tuple(entry.name for entry in self.entries)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of θ: the smallest that holds every parameter's dtype."""
        dtype = self.entries[0].dtype
        for entry in self.entries:
            dtype = torch.promote_types(dtype, entry.dtype)
        return dtype

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any name, shape or order, and with nothing else."""
        text = json.dumps([[entry.name, list(entry.shape)] for entry in self.entries], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def slice(self, name: str) -> slice:
        """Where the parameter `name` stands in the flat vector."""
        for entry in self.entries:
            if entry.name == name:
                return slice(entry.offset, entry.offset + entry.size)
        raise LayoutError(f"no parameter '{name}' here; there are: {', '.join(self.names)}")

    def ravel(self, params: Mapping[str, Tensor] | nn.Module, *, out: Flat | None = None) -> Flat:
        """Copy parameters, given by name or as a model, into one flat vector; reads and writes P numbers once.

        Raises `LayoutError` for a missing name or another shape.
        """
        if isinstance(params, nn.Module):
            params = dict(params.named_parameters(remove_duplicate=False))
        if out is None:
            first = self._get(params, self.entries[0])
            out = torch.empty(self.size, dtype=self.dtype, device=first.device)
        else:
            self.check(out)
        with torch.no_grad():
            for entry in self.entries:
                tensor = self._get(params, entry)
                out[entry.offset : entry.offset + entry.size].view(entry.shape).copy_(tensor)
        return out

    def unravel(self, theta: Flat) -> dict[str, Tensor]:
        """Parameters by name, in the model's dtypes: views into `theta`, copied only where its dtype is another."""
        self.check(theta)
        params: dict[str, Tensor] = {}
        for entry in self.entries:
            view = theta[entry.offset : entry.offset + entry.size].view(entry.shape)
            params[entry.name] = view.to(entry.dtype)
        return params

    def assign(self, model: nn.Module, theta: Flat) -> None:
        """Overwrite the model's own parameters with `theta`, in place."""
        own = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, value in self.unravel(theta).items():
                if name not in own or own[name].shape != value.shape:
                    came = tuple(own[name].shape) if name in own else "nothing"
                    raise LayoutError(f"'{name}' is {came} in this model, the layout has {tuple(value.shape)}")
                own[name].copy_(value)

    def check(self, theta: Tensor) -> None:
        """Raise `LayoutError` unless `theta` is a flat vector of `size` numbers."""
        if theta.ndim != 1 or theta.numel() != self.size:
            raise LayoutError(f"a vector of shape {tuple(theta.shape)} came; this layout has ({self.size},) weights")

    def describe(self) -> list[dict[str, Any]]:
        """A plain list of names, shapes and offsets for a JSON manifest."""
        return [
            {"name": e.name, "shape": list(e.shape), "offset": e.offset, "dtype": str(e.dtype).removeprefix("torch.")}
            for e in self.entries
        ]

    @classmethod
    def parse(cls, described: Any) -> "Layout":
        """The inverse of `describe`; every value from the outside is checked, nothing is allocated."""
        if not isinstance(described, list) or not described:
            raise LayoutError("a stored layout must be a non-empty list of parameters")
        entries: list[Entry] = []
        offset = 0
        for item in described:
            try:
                name, shape, dtype = item["name"], tuple(item["shape"]), _DTYPES[item["dtype"]]
                good = isinstance(name, str) and all(type(n) is int and 0 <= n < 2**48 for n in shape)
                good = good and item["offset"] == offset
            except (KeyError, TypeError):
                good = False
            if not good:
                raise LayoutError(f"a stored layout has a bad entry at offset {offset}: {str(item)[:200]}")
            entries.append(Entry(name, shape, offset, dtype))
            offset += entries[-1].size
        return cls(tuple(entries))

    @staticmethod
    def _get(params: Mapping[str, Tensor], entry: Entry) -> Tensor:
        if entry.name not in params:
            raise LayoutError(f"parameter '{entry.name}' is missing; {len(params)} came: {', '.join(list(params)[:8])}")
        tensor = params[entry.name]
        if tuple(tensor.shape) != entry.shape:
            raise LayoutError(f"'{entry.name}' came as {tuple(tensor.shape)}, wanted {entry.shape}")
        return tensor

"""Weights of linear layers that see one row per example: squared outer products need no outer product.

For z = W x + b, g = ∂loss/∂z of one example: Σ_n (g_ni x_nj)² = (G²)ᵀ X², rows of G and X one example each. A tap is a
zero vector added to z: its gradient is g.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightbank.curvature.held import Held
from weightbank.types import Inputs


@dataclass(frozen=True)
class Plan:
    """Which weights to tap: weight name -> bias name or None. `size` counts the weights of both."""

    layers: Mapping[str, str | None]
    size: int

    @property
    def names(self) -> list[str]:
        """Every parameter that taps take care of."""
        return [*self.layers, *(bias for bias in self.layers.values() if bias is not None)]

    @classmethod
    def of(cls, held: Held, x: Inputs, y: Tensor) -> "Plan":
        """The linear layers whose weights one example (x, y) uses once, on one row, and nowhere else."""
        with _Watch(held.leaves) as watch:
            held.head_at(held.output(x), y)
        layers = {w: b for w, b in watch.linear.items() if watch.uses[w] == 1 and (b is None or watch.uses[b] == 1)}
        return cls(layers, sum(held.leaves[name].numel() for pair in layers.items() for name in pair if name))

    def taps(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A zero for every output of every tapped layer, by weight name."""
        return {name: weights[name].new_zeros(len(weights[name])) for name in self.layers}

    def add(self, views: Mapping[str, Tensor], squares: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        """Add (G²)ᵀ X² to each tapped weight and the sum of G² over examples to its bias."""
        for name, bias in self.layers.items():
            g = squares[name].to(views[name].dtype)
            views[name].addmm_(g.T, inputs[name].to(views[name].dtype).square())
            if bias is not None:
                views[bias].add_(g.sum(0))


class Tapping(TorchFunctionMode):
    """Adds taps to planned layers and keeps their inputs; `RuntimeError` if a planned weight is used otherwise."""

    def __init__(self, plan: Plan, weights: Mapping[str, Tensor], taps: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._layers, self._taps = plan.layers, taps
        self._names = {id(weight): name for name, weight in weights.items()}
        self._inputs: dict[str, Tensor] = {}

    def inputs(self) -> dict[str, Tensor]:
        """The inputs of the planned layers, by weight name; each must have been met."""
        if self._inputs.keys() != self._layers.keys():
            raise RuntimeError("a linear layer was not used as in the first example")
        return self._inputs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = _named(self._names, args, kwargs)
        if not names:
            return func(*args, **kwargs)
        x, weight, bias = _linear_arguments(func, args, kwargs)
        name = self._names.get(id(weight), "")
        if x is None or name not in self._layers or name in self._inputs or x.numel() != weight.shape[1]:
            raise RuntimeError(f"{names} were not used as in the first example")
        self._inputs[name] = x.detach().reshape(-1)
        return func(x, weight, bias) + self._taps[name]


class _Watch(TorchFunctionMode):
    """Counts in how many calls each weight takes part, and lists linear layers with a single row of inputs."""

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self.uses = dict.fromkeys(leaves, 0)
        self.linear: dict[str, str | None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for name in _named(self._names, args, kwargs):
            self.uses[name] += 1
        x, weight, bias = _linear_arguments(func, args, kwargs)
        if x is not None and x.numel() == weight.shape[1] and id(weight) in self._names:
            if bias is None:
                self.linear[self._names[id(weight)]] = None
            elif id(bias) in self._names:
                self.linear[self._names[id(weight)]] = self._names[id(bias)]
        return func(*args, **kwargs)


def _linear_arguments(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
    if func is not F.linear or (kwargs.keys() - {"bias", "weight", "input"}):
        return None, None, None
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    return given["input"], given["weight"], given.get("bias")


def _named(names: Mapping[int, str], args: Any, kwargs: Any) -> list[str]:
    """Which weights are among the arguments of a call, lists and tuples looked into."""
    found: list[str] = []
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor):
            if id(argument) in names:
                found.append(names[id(argument)])
        elif isinstance(argument, (tuple, list)):
            found.extend(_named(names, argument, {}))
    return found

"""What surrounds a model's own forward pass: quantized weights in the parameters' place, functional calls quantized."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightbank.lowprecision.points import Clock, Point
from weightbank.lowprecision.quantities import Formats
from weightbank.lowprecision.round_trip import round_trip

FUNCTIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", Tensor.relu: "relu", F.relu_: "relu", torch.relu_: "relu", Tensor.relu_: "relu",
    F.relu6: "relu6", F.leaky_relu: "leaky_relu", F.elu: "elu", F.selu: "selu", F.celu: "celu", F.gelu: "gelu",
    F.silu: "silu", F.mish: "mish", F.hardswish: "hardswish", F.hardsigmoid: "hardsigmoid", F.hardtanh: "hardtanh",
    F.softplus: "softplus", F.glu: "glu", F.prelu: "prelu", torch.tanh: "tanh", Tensor.tanh: "tanh",
    torch.sigmoid: "sigmoid", Tensor.sigmoid: "sigmoid",
}  # fmt: skip
"""Activation functions a model may call as functions."""

SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}


def is_sum(func: Any, args: Any, result: Any) -> bool:
    """Whether a call was a residual sum: two floating tensors of the shape of the result."""
    if func not in SUMS or len(args) < 2 or not isinstance(result, Tensor) or not result.is_floating_point():
        return False
    return all(isinstance(arg, Tensor) and arg.shape == result.shape for arg in args[:2])


class Functional(TorchFunctionMode):
    """Quantizes results of activation functions and residual sums, except inside modules that hooks or rules decide."""

    def __init__(self, clock: Clock, formats: Formats) -> None:
        super().__init__()
        self.clock, self.formats = clock, formats
        self.points: dict[str, Point] = {}
        self.model: nn.Module = nn.Module()  # the one that is running
        self.inside = 0  # modules that decide for themselves and are running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, then quantize."""
        result = func(*args, **(kwargs or {}))
        name = FUNCTIONS.get(func) or ("sum" if is_sum(func, args, result) else None)
        if name is None or self.inside:
            return result
        if name not in self.points:
            self.points[name] = Point(self.clock, f"function {name}", self.formats.activations, self.formats.errors)
        return self.points[name].quantized(result, self.model)

    def enter_module(self, module: nn.Module, inputs: Any) -> None:
        """A forward pre-hook of modules that decide for themselves: activations, and those with a hook."""
        self.inside += 1

    def leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """The forward hook to it, called even after an error."""
        self.inside = max(0, self.inside - 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Functional":
        return self


class StraightThrough:
    """Puts quantized weights in the place of the parameters, whatever these are at the time, for one forward pass.

    Inside `torch.func.functional_call` those are the vector's views, so that gradients arrive there.
    """

    def __init__(self, model: nn.Module, clock: Clock, formats: dict[str, Formats]) -> None:
        self.clock = clock
        self.places = [
            (path, attribute, formats[path].weights)
            for path, module in model.named_modules()
            for attribute in module._parameters
            if formats[path].weights is not None
        ]

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Quantized weights inside; a parameter used in several places is quantized once, by its first place."""
        call = self.clock.call("forward pass", model)
        done: dict[int, Tensor] = {}
        before: list[tuple[nn.Module, str, Any]] = []
        try:
            for path, attribute, format in self.places:
                module = model.get_submodule(path)
                full = module._parameters[attribute]
                if full is None or format is None:
                    continue
                if id(full) not in done:
                    stream = f"weights of '{f'{path}.{attribute}'.lstrip('.')}' in {call}"
                    rounder = self.clock.rounder(format, self.clock.rounding, stream)
                    done[id(full)] = round_trip(full, rounder, None)
                before.append((module, attribute, full))
                module._parameters[attribute] = done[id(full)]  # type: ignore[assignment]
            yield
        finally:
            for module, attribute, full in reversed(before):
                module._parameters[attribute] = full


def wrapped(model: nn.Module, weights: StraightThrough | None, functional: Functional | None) -> Callable[..., Any]:
    """The model's forward method inside of them; bound to the module it is called on, so that copies work too."""
    own = model.__dict__.get("forward")

    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = type(module).forward.__get__(module) if own is None else own
        with ExitStack() as stack:
            if weights is not None:
                stack.enter_context(weights.swapped(module))
            if functional is not None:
                functional.model, functional.inside = module, 0
                stack.enter_context(functional)
            return call(*args, **kwargs)

    return forward

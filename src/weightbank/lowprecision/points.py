"""Where activations and errors are quantized: forward hooks, and the place of each call in the random stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightbank.formats import Format, Rounding
from weightbank.lowprecision.round_trip import Rounder, round_trip

Evaluating: TypeAlias = Literal["keep", "nearest", "off"]

ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus,
    nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
"""Modules whose outputs are quantized unless a rule says otherwise."""


@dataclass
class Clock:
    """What all places of one attachment share: how to round, and where they are in the random stream.

    Calls are numbered from each optimizer step on, those of training apart from all others. So a resumed run draws the
    same bits, and evaluating in between does not change what training draws.
    """

    rounding: Rounding
    seed: int
    step: int = 0
    activations: Evaluating = "keep"
    _counted: int = field(default=-1, repr=False)
    _calls: dict[str, int] = field(default_factory=dict, repr=False)

    def call(self, place: str, module: nn.Module) -> str:
        """A name for this call of a place: no other call since the last step has it.

        Training is what runs in training mode and with gradients.
        """
        if self._counted != self.step:
            self._counted, self._calls = self.step, {}
        name = place if module.training and torch.is_grad_enabled() else f"{place} evaluated"
        number = self._calls[name] = self._calls.get(name, -1) + 1
        return f"{name}, call {number}"

    @contextmanager
    def evaluating(self, activations: Evaluating) -> Iterator[None]:
        """Another way for activations, and counts that start anew, inside; so a repeated evaluation draws the same."""
        before = self.activations, self._calls
        self.activations, self._calls = activations, {}
        try:
            yield
        finally:
            self.activations, self._calls = before

    def rounder(self, format: Format, rounding: Rounding, stream: str) -> Rounder:
        """A rounder at this step."""
        return Rounder(format, rounding, self.seed, stream, self.step)


@dataclass(eq=False)
class Point:
    """A forward hook that quantizes a module's output; copies of the module share it."""

    clock: Clock
    name: str
    activations: Format | None
    errors: Format | None

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The forward hook; tensors in tuples, lists and dicts are quantized too."""
        return self.quantized(output, module)

    def quantized(self, value: Any, module: nn.Module) -> Any:
        """`value` with its floating tensors quantized as activations, and their gradients as errors."""
        if isinstance(value, Tensor):
            return self._round(value, module) if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: self.quantized(item, module) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self.quantized(item, module) for item in value))
        if isinstance(value, (tuple, list)):
            return type(value)(self.quantized(item, module) for item in value)
        return value

    def _round(self, x: Tensor, module: nn.Module) -> Tensor:
        clock = self.clock
        call = clock.call(f"'{self.name}'", module)
        forward = backward = None
        if self.activations is not None and clock.activations != "off":
            rounding: Rounding = "nearest" if clock.activations == "nearest" else clock.rounding
            forward = clock.rounder(self.activations, rounding, f"activations of {call}")
        if self.errors is not None:
            backward = clock.rounder(self.errors, clock.rounding, f"errors of {call}")
        return round_trip(x, forward, backward)

"""One autograd function that quantizes a tensor on its way forward and the gradient on its way back."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightbank.errors import NonFiniteError
from weightbank.formats import Format, Rounding
from weightbank.formats.rounding import key


@dataclass(frozen=True)
class Rounder:
    """A format with its rounding and its place in the random stream; `stream` says what is rounded, for errors too."""

    format: Format
    rounding: Rounding
    seed: int
    stream: str
    step: int

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Quantize `x`, a plain tensor of floats; raises `NonFiniteError` saying where it was met."""
        try:
            with torch._C.DisableTorchFunction():  # modes that watch the model's calls have no business in here
                return self.format.quantize(x, rounding=self.rounding, key=self.key, out=out)
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.stream}, step {self.step}: {error}") from error

    @property
    def key(self) -> int | None:
        """Of the random bits; None for roundings that draw none."""
        return None if self.rounding == "nearest" else key(self.seed, self.stream, self.step)

    def part(self, number: int) -> "Rounder":
        """The same with a stream of its own for one of several tensors."""
        return replace(self, stream=f"{self.stream}/{number}")


def round_trip(x: Tensor, forward: Rounder | None, backward: Rounder | None) -> Tensor:
    """`x` quantized by `forward`, through which the gradient passes as through an identity, quantized by `backward`.

    For torch's autograd and the transforms of `torch.func`. A fresh tensor; `x` itself if nothing is to be rounded.
    """
    if forward is None and (backward is None or not torch.is_grad_enabled()):
        return x
    rounded: Tensor = _RoundTrip.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return rounded


class _RoundTrip(torch.autograd.Function):
    @staticmethod
    def forward(x: Any, forward: Any, backward: Any) -> Any:
        return x.view_as(x) if forward is None else forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backward_rounder = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return round_trip(gradients[0], ctx.backward_rounder, None), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].view_as(tangents[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, forward: Any, backward: Any) -> Any:
        parts = [
            round_trip(
                part,
                None if forward is None else forward.part(number),
                None if backward is None else backward.part(number),
            )
            for number, part in enumerate(x.unbind(in_dims[0]))
        ]
        return torch.stack(parts), 0

"""Which results of a forward pass are quantized and which are not, found by running one batch."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from weightbank.formats import Format
from weightbank.lowprecision.forward import FUNCTIONS, is_sum
from weightbank.lowprecision.quantities import Formats
from weightbank.task import apply, evaluating, to_device
from weightbank.types import Inputs
from weightbank.undisturbed import undisturbed

OTHERS: dict[Any, str] = {
    F.linear: "linear", F.conv1d: "conv1d", F.conv2d: "conv2d", F.conv3d: "conv3d", torch.matmul: "matmul",
    Tensor.matmul: "matmul", Tensor.__matmul__: "matmul", torch.bmm: "bmm", torch.einsum: "einsum",
    F.batch_norm: "batch_norm", F.layer_norm: "layer_norm", F.embedding: "embedding", F.softmax: "softmax",
    F.log_softmax: "log_softmax", torch.softmax: "softmax", torch.log_softmax: "log_softmax",
    F.scaled_dot_product_attention: "attention", F.avg_pool2d: "avg_pool2d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d", torch.mul: "product", Tensor.mul: "product",
    Tensor.__mul__: "product",
}  # fmt: skip
"""Functions whose results are new numbers, none of which is ever quantized when called as a function."""


@dataclass(frozen=True)
class Result:
    """One result of a forward pass: of a module (`operation` is its class), or of a function called inside one."""

    module: str
    operation: str
    activations: Format | None
    errors: Format | None

    @property
    def quantized(self) -> bool:
        """Whether it is quantized forward or backward."""
        return self.activations is not None or self.errors is not None


@dataclass(frozen=True)
class Coverage:
    """Results in the order of the pass, and the format of every weight tensor (None: full precision); print it."""

    results: tuple[Result, ...]
    weights: dict[str, Format | None]

    @property
    def full(self) -> tuple[Result, ...]:
        """The results that stay in full precision."""
        return tuple(result for result in self.results if not result.quantized)

    @property
    def quantized(self) -> tuple[Result, ...]:
        """The results that are quantized forward or backward."""
        return tuple(result for result in self.results if result.quantized)

    def __str__(self) -> str:
        lines = [f"results quantized: {len(self.quantized)}", *_grouped(self.quantized)]
        lines += [f"results in full precision: {len(self.full)}", *_grouped(self.full)]
        full = [name for name, format in self.weights.items() if format is None]
        lines.append(f"weight tensors quantized: {len(self.weights) - len(full)} of {len(self.weights)}")
        if full:
            lines.append(f"  full precision: {_some(full)}")
        return "\n".join(lines)


def trace(
    model: nn.Module,
    x: Inputs,
    formats: Mapping[str, Formats],
    functional: Formats | None,
    weights: Mapping[str, Format | None],
) -> Coverage:
    """Run `model` on `x` in evaluation mode, without gradients, and note every result; nothing is changed.

    Modules of torch are one result each, whatever goes on in them; in containers and all others the functions called
    are results.
    """
    names = {id(module): name for name, module in model.named_modules()}
    watch = _Watch(names, formats, functional)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(undisturbed(device=device))
        stack.enter_context(torch.no_grad())
        stack.callback(register_module_forward_pre_hook(watch.enter_module).remove)
        stack.callback(register_module_forward_hook(watch.leave_module).remove)
        stack.enter_context(watch)
        apply(model, to_device(x, device))
    return Coverage(tuple(watch.results), {name: weights.get(name) for name, _ in model.named_parameters()})


class _Watch(TorchFunctionMode):
    def __init__(self, names: Mapping[int, str], formats: Mapping[str, Formats], functional: Formats | None) -> None:
        super().__init__()
        self.names, self.formats, self.functional = names, formats, functional
        self.running: list[nn.Module] = []
        self.results: list[Result] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(_leaf(module) for module in self.running):
            covered = FUNCTIONS.get(func) or ("sum" if is_sum(func, args, result) else None)
            operation = covered or OTHERS.get(func)
            if operation is not None and isinstance(result, Tensor) and result.is_floating_point():
                own = self.functional if covered and self.functional is not None else Formats()
                place = self.names.get(id(self.running[-1]), "?") if self.running else ""
                self.results.append(Result(place, f"function {operation}", own.activations, own.errors))
        return result

    def enter_module(self, module: nn.Module, inputs: Any) -> None:
        self.running.append(module)

    def leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.running.pop()
        name = self.names.get(id(module))
        if name is None or any(_leaf(outer) for outer in self.running):
            return
        own = self.formats[name]
        if (_leaf(module) and not isinstance(module, _PASSING)) or own.activations or own.errors:
            self.results.append(Result(name, type(module).__name__, own.activations, own.errors))


_CONTAINERS = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
"""Modules of torch that only call others, and functions such as F.relu."""
_PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
"""Modules that choose or rearrange numbers and make no new ones (dropout: in evaluation mode)."""


def _leaf(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS)


def _grouped(results: tuple[Result, ...]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for result in results:
        formats = ""
        if result.quantized:
            formats = f" (activations {result.activations or 'full'}, errors {result.errors or 'full'})"
        groups.setdefault(result.operation + formats, []).append(result.module or "(the model)")
    return [f"  {operation}: {_some(names)}" for operation, names in groups.items()]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown}, ... ({len(names)})"

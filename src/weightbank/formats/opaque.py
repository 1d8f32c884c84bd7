"""Quantizing as one opaque operation, `torch.ops.weightbank.quantize`, for graphs made by torch.compile and export."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from weightbank.formats.format import Rounding

Called = TypeVar("Called", bound=Callable[..., Any])
_REASON = "weightbank quantizes here, outside of compiled graphs: leave fullgraph=True away"


def quantize(x: Tensor, format: str, rounding: Rounding, key: int | None) -> Tensor:
    """`format_of(format).quantize(x, ...)` as one node of a graph, which runs uncompiled."""
    low, high = (0, 0) if key is None else (key & 0xFFFFFFFF, key >> 32)
    result = torch.ops.weightbank.quantize(x, format, rounding, low, high)
    assert isinstance(result, Tensor)
    return result


def uncompiled(function: Called) -> Called:
    """`function` as a break in every graph, for kernels, counters and locks; torch gives the reason under fullgraph."""
    disable: Any = torch.compiler.disable  # imports the compiler, so only call this where it is in use or soon will be
    reason = {"reason": _REASON} if "reason" in inspect.signature(disable).parameters else {}  # from torch 2.7 on
    wrapped: Called = disable(function, **reason)
    return wrapped


def _run(x: Tensor, format: str, rounding: str, low: int, high: int) -> Tensor:
    from weightbank.formats.parse import format_of

    chosen: Rounding = "stochastic" if rounding == "stochastic" else "nearest"
    return format_of(format).quantize(x, rounding=chosen, key=high << 32 | low)


def _shape(x: Tensor, format: str, rounding: str, low: int, high: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_SCHEMA = "(Tensor x, str format, str rounding, int low, int high) -> Tensor"
_operation = torch.library.custom_op("weightbank::quantize", _run, mutates_args=(), schema=_SCHEMA)
_operation.register_fake(_shape)

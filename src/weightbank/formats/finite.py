"""What every format asks of its input: finite floating-point numbers, a rounding it knows, and the right shapes."""

import math
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.errors import FormatError, NonFiniteError
from weightbank.formats.format import Rounding
from weightbank.formats.rounding import halves

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def key_wanted(x: object, rounding: Rounding, key: int | None) -> int | None:
    """The key to draw random bits from, None where none are drawn.

    Raises FormatError for what is no dense tensor, for unknown roundings, and for a stochastic one without a good key.
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        what = f"a tensor of layout {x.layout}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise FormatError(f"{what} cannot be quantized; make it a dense tensor, with torch.as_tensor or to_dense()")
    if rounding not in get_args(Rounding):
        raise FormatError(f"rounding {rounding!r} is unknown; use one of {', '.join(map(repr, get_args(Rounding)))}")
    if rounding == "nearest":
        return None
    halves(key)
    return key


def finite_float32(x: Float[Tensor, "*shape"], within: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
    """`x` detached and in float32 (itself, where it already is); one reading pass.

    Raises NonFiniteError for NaN and infinities, FormatError for magnitudes beyond the largest of `within` and for
    tensors which are not floats.
    """
    if x.dtype not in FLOATS:
        raise FormatError(f"a tensor of {x.dtype} cannot be quantized; convert it to torch.float32 first")
    x = x.detach()
    refuse_beyond(x, within)
    return x.to(torch.float32)


def refuse_nonfinite(x: Float[Tensor, "*shape"]) -> None:
    """Raise NonFiniteError, naming the first NaN or infinity; one reading pass, no temporary."""
    _largest(x)


def refuse_beyond(x: Float[Tensor, "*shape"], dtype: torch.dtype) -> None:
    """Raise FormatError, naming the value, if a magnitude lies beyond the largest of `dtype`; else as above."""
    largest, limit = _largest(x), torch.finfo(dtype).max
    if largest > limit:
        wider = {torch.float16: "bfloat16", torch.bfloat16: "float32"}.get(dtype)
        name = str(dtype).removeprefix("torch.")
        raise FormatError(
            f"a magnitude of {largest:.9g} does not fit {name}, whose largest is {limit:.9g}; "
            + (f"use Native({wider!r})" if wider else "scale the tensor first")
        )


def check_out(x: Float[Tensor, "*shape"], out: Tensor) -> None:
    """Raise FormatError unless `out` can take the quantized `x`."""
    if out.shape != x.shape or out.dtype != x.dtype:
        raise FormatError(
            f"out is {tuple(out.shape)} of {out.dtype}, but x is {tuple(x.shape)} of {x.dtype}; give them the same"
        )


def check_row(x: Tensor, out: Tensor, row_bytes: int) -> None:
    """Raise FormatError unless `x` is one float32 row and `out` its `row_bytes` bytes."""
    if x.dtype != torch.float32 or x.ndim != 1 or not x.is_contiguous():
        raise FormatError(f"a row is a contiguous float32 vector, not {tuple(x.shape)} of {x.dtype}")
    if out.dtype != torch.uint8 or out.shape != (row_bytes,) or not out.is_contiguous():
        raise FormatError(
            f"a row of {x.numel()} columns needs {row_bytes} contiguous bytes, not {tuple(out.shape)} of {out.dtype}"
        )


def check_rows(raw: Tensor, out: Tensor, span_bytes: int) -> None:
    """Raise FormatError unless `raw` holds `span_bytes` bytes for each float32 row of `out`."""
    if out.dtype != torch.float32 or out.ndim != 2 or (out.shape[1] > 1 and out.stride(1) != 1):
        raise FormatError(f"rows are read into float32 (R, W), contiguous in W, not {tuple(out.shape)} of {out.dtype}")
    if raw.dtype != torch.uint8 or raw.shape != (len(out), span_bytes) or (span_bytes > 1 and raw.stride(1) != 1):
        raise FormatError(
            f"{len(out)} rows of {out.shape[1]} columns are ({len(out)}, {span_bytes}) contiguous bytes, "
            f"not {tuple(raw.shape)} of {raw.dtype}"
        )


def _largest(x: Float[Tensor, "*shape"]) -> float:
    if x.numel() == 0 or x.is_meta:  # no values to look at
        return 0.0
    low, high = torch.aminmax(x)  # a NaN anywhere makes both NaN
    largest = max(-float(low), float(high))
    if not math.isfinite(largest):
        flat = x.reshape(-1)
        index = int((~flat.isfinite()).nonzero()[0])
        raise NonFiniteError(
            f"entry {index} of {flat.numel()} is {float(flat[index])}; formats hold finite numbers only: "
            "look for a diverged loss or a division by zero before this point"
        )
    return largest

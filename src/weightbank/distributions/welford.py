"""Running mean and scatter of vectors by Welford's recursion (1962), never E[x²] - E[x]²."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from weightbank.jit import available, jit
from weightbank.types import Flat


def advance(x: Flat, mean: Flat, scatter: Flat | None, count: int) -> None:
    """Take the `count`-th vector `x` into the running `mean` and `scatter` Σ (x - mean)², in place.

    d = x - mean;  mean += d / t;  scatter += d (x - mean). All float32, shape (P,), contiguous, on the CPU. The same
    bits with and without numba.
    """
    if x.is_contiguous() and available():
        fast = _fast()
        if scatter is None:
            fast[0](x.numpy(), mean.numpy(), _inverse(count))
        else:
            fast[1](x.numpy(), mean.numpy(), scatter.numpy(), _inverse(count))
    else:
        advance_reference(x, mean, scatter, count)


def subtract(theta: Flat, reference: Flat, out: Flat) -> bool:
    """Out = theta - reference, and whether all of it is finite; one pass, float32, shape (P,), on the CPU."""
    if out.is_contiguous() and available():
        return bool(_fast()[2](theta.numpy(), reference.numpy(), out.numpy()))
    return bool(torch.sub(theta, reference, out=out).isfinite().all())


def advance_reference(x: Tensor, mean: Tensor, scatter: Tensor | None, count: int) -> None:
    """The same in plain torch: four passes, two temporaries."""
    d = x - mean
    mean.add_(d * float(_inverse(count)))
    if scatter is not None:
        scatter.add_(d.mul_(x - mean))


def _inverse(count: int) -> Any:
    import numpy as np

    return np.float32(1.0) / np.float32(count)


def _mean_loop(x: Any, mean: Any, inverse: Any) -> None:
    for i in range(x.size):
        mean[i] += (x[i] - mean[i]) * inverse


def _both_loop(x: Any, mean: Any, scatter: Any, inverse: Any) -> None:
    for i in range(x.size):
        d = x[i] - mean[i]
        m = mean[i] + d * inverse
        mean[i] = m
        scatter[i] += d * (x[i] - m)


def _offset_loop(theta: Any, reference: Any, out: Any) -> bool:
    bad = 0
    for i in range(theta.size):
        x = theta[i] - reference[i]
        out[i] = x
        bad += x - x != 0
    return bad == 0


@cache
def _fast() -> tuple[Any, Any, Any]:
    return jit(_mean_loop), jit(_both_loop), jit(_offset_loop)

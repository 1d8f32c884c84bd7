"""What it costs to share memory, for many places at once: matrices of page against page, rows of extent against offset.

Two groups of tenants that want (F, w) and (G, v) of one position lose F G / (F + G) (w - v)² when they share it: the
loss 2 · ½ Σ F (w - w̄)² at the common best value w̄ that they did not have before. It is exact for groups of any size.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from weightbank.jit import available, jit

LANES = 16
_HUGE = 1e30  # instead of an overflow of float32, so that sums of costs stay finite
_TINY = 2.0**-126  # the least normal float32: 0 / (0 + 0) becomes 0


def sharing_cost(
    importance: Float32[Tensor, "n S"],
    weights: Float32[Tensor, "n S"],
    precision: Float32[Tensor, "Q S"],
    mean: Float32[Tensor, "Q S"],
) -> Float32[Tensor, "n Q"]:
    """Σ_s F G / (F + G) (w - v)² for each of n pages against each of Q; S weights per page; added up in order of s.

    Reads n Q S times four numbers from the cache, about half a nanosecond each; writes n Q. The same bits with and
    without numba.
    """
    if not available():
        return _finite(sharing_cost_reference(importance, weights, precision, mean))
    out = torch.empty(len(importance), len(precision))
    columns = [x.T.contiguous().numpy() for x in (precision, mean)]
    _fast()[0](importance.contiguous().numpy(), weights.contiguous().numpy(), *columns, out.numpy(), _TINY)
    return _finite(out)


def sharing_cost_reference(importance: Tensor, weights: Tensor, precision: Tensor, mean: Tensor) -> Tensor:
    """The same in plain torch."""
    out = torch.zeros(len(importance), len(precision))
    for s in range(importance.shape[1]):
        f, w = importance[:, s, None], weights[:, s, None]
        out += _term(f, w, precision[None, :, s], mean[None, :, s])
    return out


def offset_cost(
    importance: Float32[Tensor, " n"],
    weights: Float32[Tensor, " n"],
    precision: Float32[Tensor, " P"],
    mean: Float32[Tensor, " P"],
    stride: int,
) -> Float32[Tensor, " O"]:
    """The cost of n weights as one run at the offsets 0, stride, 2 stride, ... of a pool of P, as far as they fit.

    The O = ⌊(P - n) / stride⌋ + 1 costs are sums over 16 lanes, each added up in order. float32; the same bits with
    and without numba.
    """
    if not available():
        return _finite(offset_cost_reference(importance, weights, precision, mean, stride))
    out = torch.empty((precision.numel() - weights.numel()) // stride + 1)
    vectors = (x.contiguous().numpy() for x in (importance, weights, precision, mean))
    _fast()[1](*vectors, stride, out.numpy(), _TINY)
    return _finite(out)


def offset_cost_reference(importance: Tensor, weights: Tensor, precision: Tensor, mean: Tensor, stride: int) -> Tensor:
    """The same in plain torch."""
    size = weights.numel()
    count = (precision.numel() - size) // stride + 1
    lanes = torch.zeros(count, LANES)
    for start in range(0, size, LANES):
        width = min(LANES, size - start)
        f, w = importance[start : start + width], weights[start : start + width]
        g, v = (x.contiguous().as_strided((count, width), (stride, 1), start) for x in (precision, mean))
        lanes[:, :width] += _term(f, w, g, v)
    out = torch.zeros(count)
    for lane in lanes.unbind(1):
        out += lane
    return out


def published_cost(
    importance: Float[Tensor, "n S"],
    weights: Float[Tensor, "n S"],
    occupants: Float[Tensor, "Q S"],
    contents: Float[Tensor, "Q S"],
) -> Float64[Tensor, "n Q"]:
    """Σ_s [F > 0][G > 0] (F + G) (w - v)² for each of n pages against each of Q, as six matrix products in float64.

    The cost of the published system (Neural Weight Virtualization, MobiSys 2020): `occupants` is the summed Fisher G
    of who is on the page, `contents` what stands there now. A position where either is 0 costs nothing.
    """
    f, w, g, v = (x.double() for x in (importance, weights, occupants, contents))
    f, g = f.clamp(min=0), g.clamp(min=0)
    one, other = (f > 0).double(), (g > 0).double()
    cost = (f * w * w) @ other.T
    products = ((f * w, other * v, -2), (f, other * v * v, 1), (one * w * w, g, 1), (one * w, g * v, -2))
    for left, right, factor in (*products, (one, g * v * v, 1)):
        cost.addmm_(left, right.T, alpha=factor)
    return cost.clamp_(min=0)


def _term(f: Tensor, w: Tensor, g: Tensor, v: Tensor) -> Tensor:
    return (f * (g / (f + g).clamp(min=_TINY))) * ((w - v) * (w - v))


def _finite(cost: Tensor) -> Tensor:
    return cost.nan_to_num_(nan=_HUGE, posinf=_HUGE).clamp_(max=_HUGE)


def _pages_loop(importance: Any, weights: Any, precision: Any, mean: Any, out: Any, tiny: Any) -> None:
    least = precision.dtype.type(tiny)
    for i in range(out.shape[0]):
        row = out[i]
        row[:] = 0
        for s in range(importance.shape[1]):
            f, w = importance[i, s], weights[i, s]
            if f == 0:
                continue
            for q in range(row.size):
                g = precision[s, q]
                d = w - mean[s, q]
                row[q] += (f * (g / max(f + g, least))) * (d * d)


def _offsets_loop(importance: Any, weights: Any, precision: Any, mean: Any, stride: Any, out: Any, tiny: Any) -> None:
    least = precision.dtype.type(tiny)
    size = weights.size
    whole = size // 16 * 16
    for o in range(out.size):
        g, v = precision[o * stride : o * stride + size], mean[o * stride : o * stride + size]
        lanes = np.zeros(16, np.float32)
        for start in range(0, whole, 16):
            for lane in range(16):
                i = start + lane
                f = importance[i]
                d = weights[i] - v[i]
                lanes[lane] += (f * (g[i] / max(f + g[i], least))) * (d * d)
        for i in range(whole, size):
            f = importance[i]
            d = weights[i] - v[i]
            lanes[i - whole] += (f * (g[i] / max(f + g[i], least))) * (d * d)
        total = np.float32(0)
        for lane in range(16):
            total += lanes[lane]
        out[o] = total


@cache
def _fast() -> tuple[Any, Any]:
    return jit(_pages_loop), jit(_offsets_loop)

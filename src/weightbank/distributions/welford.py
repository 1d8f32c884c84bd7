"""Running mean and scatter of vectors by Welford's recursion (1962), never E[x²] - E[x]²."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightbank.errors import NonFiniteError
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


def check_finite(finite: bool, theta: Flat, number: int) -> None:
    """Raise `NonFiniteError` for iterate `number` unless `finite`, which is what `subtract` said."""
    if not finite:
        bad = int((~theta.isfinite()).sum())
        what = f"{bad} of {theta.numel()} weights are NaN or infinite" if bad else "it is beyond float32's range"
        raise NonFiniteError(f"iterate {number}: {what}; nothing was recorded")


TOGETHER = 4
"""Iterates whose moments are advanced in one pass: mean and scatter then pass through the cache once for all four."""

Take: TypeAlias = Callable[[slice, Flat], bool]


def offsets(theta: Flat, reference: Flat) -> Take:
    """`take(columns, out)` writes those columns of theta - reference into `out` and says whether they are finite."""
    if not available():
        return lambda columns, out: subtract(theta[columns], reference[columns], out[columns])
    a, b, loop = theta.numpy(), reference.numpy(), _fast()[2]
    return lambda columns, out: bool(loop(a[columns], b[columns], out.numpy()[columns]))


def offsets_and_moments(
    theta: Flat, reference: Flat, before: Sequence[Flat], mean: Flat, scatter: Flat | None, count: int
) -> Take:
    """As `offsets`, and besides advances those columns of the moments by the rows `before` and then by this one.

    The moments are of `count` vectors, `before` and this one not among them. The same bits as one by one; where the
    columns are not finite the moments are spoilt.
    """
    take = offsets(theta, reference)
    if available() and scatter is not None and len(before) == TOGETHER - 1:
        a, b, m, s, loop = theta.numpy(), reference.numpy(), mean.numpy(), scatter.numpy(), _fast()[3]
        x, y, z = (row.numpy() for row in before)
        inverses = _inverse(np.arange(count + 1, count + TOGETHER + 1))

        def four(columns: slice, out: Flat) -> bool:
            rows = (x[columns], y[columns], z[columns], out.numpy()[columns])
            return bool(loop(a[columns], b[columns], *rows, m[columns], s[columns], inverses))

        return four

    def one_by_one(columns: slice, out: Flat) -> bool:
        finite = take(columns, out)
        for number, row in enumerate([*before, out], start=count + 1):
            advance(row[columns], mean[columns], None if scatter is None else scatter[columns], number)
        return finite

    return one_by_one


def advance_reference(x: Tensor, mean: Tensor, scatter: Tensor | None, count: int) -> None:
    """The same in plain torch: four passes, two temporaries."""
    d = x - mean
    mean.add_(d * float(_inverse(count)))
    if scatter is not None:
        scatter.add_(d.mul_(x - mean))


def _inverse(count: Any) -> Any:
    """1 / count in float32, of a number or of several."""
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


def _four_loop(
    theta: Any, reference: Any, x: Any, y: Any, z: Any, out: Any, mean: Any, scatter: Any, inverses: Any
) -> bool:
    """Offset and moments in stretches that fit the first-level cache: one loop over all arrays is slower."""
    p, q, r, t = inverses[0], inverses[1], inverses[2], inverses[3]
    bad = 0
    for start in range(0, theta.size, 1024):
        stop = min(start + 1024, theta.size)
        a, b, w = theta[start:stop], reference[start:stop], out[start:stop]
        for i in range(w.size):
            offset = a[i] - b[i]
            w[i] = offset
            bad += offset - offset != 0
        u, v, o = x[start:stop], y[start:stop], z[start:stop]
        m, s = mean[start:stop], scatter[start:stop]
        for i in range(w.size):
            centre, spread = m[i], s[i]
            d = u[i] - centre
            centre += d * p
            spread += d * (u[i] - centre)
            d = v[i] - centre
            centre += d * q
            spread += d * (v[i] - centre)
            d = o[i] - centre
            centre += d * r
            spread += d * (o[i] - centre)
            d = w[i] - centre
            centre += d * t
            spread += d * (w[i] - centre)
            m[i], s[i] = centre, spread
    return bad == 0


@cache
def _fast() -> tuple[Any, Any, Any, Any]:
    return jit(_mean_loop), jit(_both_loop), jit(_offset_loop), jit(_four_loop)

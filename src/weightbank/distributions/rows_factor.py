"""From the rows of a run to the low-rank factor of its covariance: which rows, about which mean, at which scale."""

import math

import torch

from weightbank.distributions.factor import Centred, Factor, Running
from weightbank.distributions.keeping import Keep, Sketch
from weightbank.distributions.sketch import scatter_factor
from weightbank.distributions.sources import LogRows
from weightbank.errors import StoreError
from weightbank.store import RowLog
from weightbank.types import Flat


def factor_of(
    rows: RowLog,
    keep: Keep,
    numbers: range,
    offset: Flat,
    *,
    covariance: str,
    deviations: str,
    window: int | None,
    scale: float,
) -> Factor | None:
    """The factor of the iterates `numbers`, whose mean is `offset` (relative to the reference), or None if one row.

    The arguments are those of `Moments.gaussian`; raises `StoreError` where what is kept cannot give them.
    """
    total = len(numbers)
    if total < 2:
        return None
    if isinstance(keep, Sketch):
        if window is not None:
            raise StoreError("a sketch has no window; record with keep=Window(K) or 'all'")
        factor = scatter_factor(rows, offset, total)
        return factor.times(math.sqrt(scale / (total - 1)) * torch.eye(factor.rank, dtype=torch.float64))
    kept = numbers if isinstance(keep, str) else range(rows.first, numbers.stop)
    if covariance == "sample":
        if len(kept) < total or window is not None:
            raise StoreError(f"a sample covariance needs all {total} rows; {len(kept)} are kept (window={window})")
        return Factor(LogRows(rows, kept), Centred(total, math.sqrt(scale / (total - 1))), offset)
    kept = kept[-window:] if window is not None else kept
    if len(kept) < 2:
        return None
    factor_scale = math.sqrt(scale / (len(kept) - 1))
    if deviations == "mean":
        return Factor(LogRows(rows, kept), Centred(len(kept), factor_scale), offset)
    return Factor(LogRows(rows, kept), Running(len(kept), total - len(kept) + 1, total, factor_scale), offset)

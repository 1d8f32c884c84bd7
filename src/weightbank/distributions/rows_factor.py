"""From the rows of a run to the low-rank factor of its covariance: which rows, about which mean, at which scale."""

import math

import torch

from weightbank.distributions.factor import Centred, Factor, Running
from weightbank.distributions.keeping import Keep, Sketch, oldest
from weightbank.distributions.sketch import scatter_factor
from weightbank.distributions.snapshots import column_moments
from weightbank.distributions.sources import LogRows
from weightbank.errors import StoreError
from weightbank.store import RowLog
from weightbank.types import Flat


def factor_of(
    rows: RowLog,
    stop: int,
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

    Of a log that grows meanwhile, only the rows before number `stop` are looked at. The other arguments are those of
    `Moments.gaussian`; raises `StoreError` where what is kept cannot give them.
    """
    total = len(numbers)
    if total < 2:
        return None
    if isinstance(keep, Sketch):
        if window is not None:
            raise StoreError("a sketch has no window; record with keep=Window(K) or 'all'")
        factor = scatter_factor(rows, keep.rows, offset, total, stop)
        return factor.times(math.sqrt(scale / (total - 1)) * torch.eye(factor.rank, dtype=torch.float64))
    kept = numbers if isinstance(keep, str) else range(oldest(rows, stop), numbers.stop)
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


def moments_of(rows: RowLog | None, keep: Keep, numbers: range) -> tuple[Flat, Flat]:
    """Mean offset and variance of some of a log's iterates, by one pass over their rows."""
    if rows is None or not isinstance(keep, str):
        raise StoreError("burn_in and thin need every iterate's row: keep='all' and rows=RowLog(...)")
    if len(numbers) == 0:
        raise StoreError(f"burn_in={numbers.start} leaves none of {numbers.stop} iterates")
    return column_moments(LogRows(rows, numbers))


def check_choices(
    covariance: str, deviations: str, *, window: int | None, burn_in: int, thin: int, scale: float, floor: float
) -> None:
    """Raise `StoreError` for arguments of `Moments.gaussian` that mean nothing."""
    if covariance not in ("swag", "diagonal", "sample") or deviations not in ("running", "mean"):
        raise StoreError(
            f"covariance={covariance!r}, deviations={deviations!r}; wanted 'swag', 'diagonal' or 'sample', and "
            "'running' or 'mean'"
        )
    if not 0 < scale < math.inf or burn_in < 0 or thin < 1 or (window is not None and window < 1):
        raise StoreError(f"scale={scale}, burn_in={burn_in}, thin={thin}, window={window}; wanted positive numbers")
    if not 0 <= floor < math.inf:
        raise StoreError(f"floor={floor}; wanted a least variance of 0 or more")

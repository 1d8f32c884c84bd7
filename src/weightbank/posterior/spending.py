"""How many rows of a posterior at which precision a disk budget buys (SWAG, arXiv 1902.02476; Wasserstein distance)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from weightbank.budget import Allocation, Options
from weightbank.distributions import Moments
from weightbank.errors import DataError
from weightbank.formats import Format, format_of
from weightbank.posterior.plan import plan
from weightbank.types import Flat

PILOT_ROWS = 16
"""So many of a pilot's newest rows are rounded to see what a format does to them."""


@dataclass(frozen=True, eq=False)
class RowMenu:
    """For every posterior a choice of (K, format), with what it costs; see `row_options`.

    options: one place for each of `names`, one option for each of `ways`; the resource is "bytes".
    """

    options: Options
    names: tuple[str, ...]
    ways: tuple[tuple[int, Format], ...]

    def chosen(self, found: Allocation) -> dict[str, tuple[int, Format]]:
        """Rows and format of each posterior, by name."""
        return {name: self.ways[int(way)] for name, way in zip(self.names, found.choice, strict=True)}


def row_options(
    pilots: Mapping[str, tuple[Moments, Flat]],
    *,
    rows: Sequence[int],
    formats: Sequence[Format | str],
    scale: float = 0.5,
) -> RowMenu:
    """What K rows in a format cost posteriors that share a disk: bytes, and distance from the law of endless rows.

    A weight of variance v, known from K rows only, has a standard deviation that is off by 2 (1 - c₄(K)) v in the mean
    square, c₄ the factor of the unbiased standard deviation; rounding with mean squared error r moves each draw by r
    more. A draw of the stored law is so far from the draw of the ideal one next to it, and the loss between them is

        ½ scale Σ h [2 (1 - c₄(K)) v + r]

    (½ Σ h E[δ²], δ the best coupling of the marginals: their 2-Wasserstein distance). It holds for rows as independent
    as those of one epoch each; correlated ones are worth fewer. Bytes are all that lies on the disk after recording K
    iterates: rows, commits, moments, reference, manifest (`weightbank.posterior.plan`).

    Args:
        pilots: by name, a short recording with rows in float32 (v is its variance, r that of rounding its newest rows)
            and a curvature h, shape (P,), loss per example and squared weight; negative values count as 0.
        rows: numbers K to choose from, each at least 2.
        formats: formats with rows to choose from, or their short names.
        scale: of the low-rank part of the law: ½ as published ("swag"), 1 for covariance="sample".

    Raises `DataError` without anything to choose from or for pilots without two rows, `LayoutError` for curvatures of
    other sizes.
    """
    if not pilots or not rows or not formats or min(rows) < 2 or not scale > 0:
        raise DataError(
            f"{len(pilots)} pilots, rows={tuple(rows)}, {len(formats)} formats, scale={scale}; wanted at least one of "
            "each, 2 rows or more, and a positive scale"
        )
    chosen = [format_of(format) for format in formats]
    ways = tuple(product(rows, chosen))
    increase, bytes = (torch.zeros(len(pilots), len(ways), dtype=torch.float64) for _ in range(2))
    for place, (name, (pilot, curvature)) in enumerate(pilots.items()):
        pilot.layout.check(curvature)
        worth = 0.5 * scale * curvature.double().clamp(min=0)
        rounding = {format: float(worth @ _rounding(name, pilot, format)) for format in chosen}
        spread = float(worth @ pilot.variance().double())
        for way, (count, format) in enumerate(ways):
            increase[place, way] = 2 * (1 - unbiasing(count)) * spread + rounding[format]
            bytes[place, way] = plan(pilot.layout, iterates=count, format=format).bytes
    return RowMenu(Options(increase, {"bytes": bytes}), tuple(pilots), ways)


def unbiasing(count: int) -> float:
    """c₄(K) = √(2 / (K - 1)) Γ(K / 2) / Γ((K - 1) / 2): the mean of the estimated over the true standard deviation.

    >>> round(unbiasing(2), 6), round(unbiasing(20), 6)
    (0.797885, 0.986934)
    """
    log = math.lgamma(count / 2) - math.lgamma((count - 1) / 2)
    return math.sqrt(2 / (count - 1)) * math.exp(log)


def _rounding(name: str, pilot: Moments, format: Format) -> Tensor:
    """The mean squared rounding error of each weight in the pilot's newest rows, shape (P,), float64."""
    log = pilot.rows
    if log is None or not log.created or log.count - log.first < 2:
        raise DataError(f"the pilot '{name}' has no two rows to look at: record some with rows=RowLog(':memory:')")
    newest = range(max(log.first, log.count - PILOT_ROWS), log.count)
    total = torch.zeros(pilot.layout.size, dtype=torch.float64)
    raw = torch.empty(format.row_bytes(pilot.layout.size), dtype=torch.uint8)
    back = torch.empty(1, pilot.layout.size)
    for number in newest:
        row = log.row(number)
        format.encode_row(row, raw)
        format.decode_rows(raw[None], back)
        total += (back[0] - row).double().square()
    return total / len(newest)

"""Frequent Directions over iterates: l rows that stand for any number (Liberty 2013, arXiv 1206.0594)."""

import math

import numpy as np
import torch

from weightbank.distributions.factor import Dense, Factor, Running
from weightbank.distributions.sources import LogRows
from weightbank.store import RowLog
from weightbank.store.records import ITERATE, SKETCH
from weightbank.types import Flat

_GROUP_BYTES = 128 << 20


def live_rows(log: RowLog) -> tuple[range, int]:
    """The rows that stand for everything recorded: the newest sketch and the iterates since; how many are sketch."""
    kinds, generations = log.journal.kinds[log.first :], log.journal.generations[log.first :]
    sketches = np.flatnonzero(kinds == SKETCH)
    if len(sketches) == 0:
        return range(log.count), 0
    first = int(sketches[np.searchsorted(generations[sketches], generations[sketches[-1]])])
    return range(log.first + first, log.count), int((kinds[first:] == SKETCH).sum())


def drop_unfinished(log: RowLog, rows: int) -> None:
    """Take back a sketch that a killed process had not finished; what it stood for is still there."""
    live, sketched = live_rows(log)
    if 0 < sketched < rows and (log.journal.kinds[live.start :] == SKETCH).all():
        log.truncate(live.start)


def scatter_factor(log: RowLog, offset: Flat, total: int) -> Factor:
    """U with U'U ≈ Σ (θ_i - mean)(θ_i - mean)' over all `total` iterates; `offset` is mean - reference.

    Sketch rows stand as they are. The m newer iterates enter as sqrt(i / (i - 1)) e_i with e_i = θ_i minus the running
    mean, whose outer products sum to the exact scatter without a second pass.
    """
    live, sketched = live_rows(log)
    fresh = len(live) - sketched
    matrix = torch.zeros(len(live), len(live), dtype=torch.float64)
    offsets = torch.zeros(len(live), dtype=torch.float64)
    matrix[:sketched, :sketched] = torch.eye(sketched, dtype=torch.float64)
    if fresh:
        numbers = torch.arange(total - fresh + 1, total + 1, dtype=torch.float64)
        stretch = torch.where(numbers > 1, numbers / (numbers - 1).clamp(min=1), 0).sqrt()
        weights, centre = Running(fresh, total - fresh + 1, total, 1.0).pull(torch.diag(stretch))
        matrix[sketched:, sketched:], offsets[sketched:] = weights, centre
    return Factor(LogRows(log, live), Dense(matrix, offsets), offset)


def shrink(log: RowLog, rows: int, offset: Flat, total: int, step: int) -> None:
    """Append a sketch of `rows` rows that stands for all 2 `rows` live ones from now on.

    With λ the eigenvalues of U U', the new rows are sqrt(1 - λ_l / λ_i) v_i' U for i < l: what they lose in any
    direction is at most λ_l, and Σ λ_l over time is at most |D|_F² / l.
    """
    factor = scatter_factor(log, offset, total)
    values, vectors = torch.linalg.eigh(factor.gram(torch.float64))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    kept = (1 - values[rows] / values[:rows].clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0).sqrt()
    turned = factor.times((vectors[:, :rows] * kept).T)
    generation = int(log.journal.generations.max()) + 1
    group = max(1, math.floor(_GROUP_BYTES / (4 * log.size)))
    matrix, offsets = turned.weights.pull(torch.eye(rows, dtype=torch.float64))
    for first in range(0, rows, group):
        part = Factor(turned.rows, Dense(matrix[first : first + group], offsets[first : first + group]), offset)
        block = torch.empty(part.rank, log.size)
        for columns, values_here in part.blocks():
            block[:, columns] = values_here
        for row in block:
            log.append(row, step=step, kind=SKETCH, generation=generation)


def iterate_numbers(log: RowLog, start: int) -> list[int]:
    """The row numbers of iterates number `start` (from 0) and later."""
    return [int(number) for number in np.flatnonzero(log.journal.kinds == ITERATE)[start:]]

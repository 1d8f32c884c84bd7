"""Frequent Directions over iterates: l rows that stand for any number (Liberty 2013, arXiv 1206.0594)."""

import math

import numpy as np
import torch

from weightbank.distributions.factor import Dense, Factor, Running
from weightbank.distributions.keeping import oldest
from weightbank.distributions.sources import LogRows
from weightbank.errors import ResumeError
from weightbank.store import RowLog
from weightbank.store.records import ITERATE, SKETCH
from weightbank.types import Flat

_GROUP_BYTES = 128 << 20


def live_rows(log: RowLog, rows: int, stop: int) -> tuple[range, int]:
    """The rows before number `stop` that stand for everything recorded: the newest sketch and the iterates since.

    Also says how many are sketch. A sketch of fewer than `rows` rows at the end is not finished, and does not count
    yet: what it is made from is still there.
    """
    first = oldest(log, stop)
    kinds, generations = log.journal.kinds[first:stop], log.journal.generations[first:stop]
    sketches = np.flatnonzero(kinds == SKETCH)
    if len(sketches) and sketches[-1] == len(kinds) - 1:
        begun = int(sketches[np.searchsorted(generations[sketches], generations[-1])])
        if len(kinds) - begun < rows:
            stop, sketches = first + begun, sketches[sketches < begun]
    if len(sketches) == 0:
        return range(first, stop), 0
    newest = sketches[np.searchsorted(generations[sketches], generations[sketches[-1]]) :]
    return range(first + int(newest[0]), stop), len(newest)


def drop_unfinished(log: RowLog, rows: int) -> None:
    """Take back a sketch that a killed process had not finished; what it stood for is still there."""
    log.truncate(live_rows(log, rows, log.count)[0].stop)


def scatter_factor(log: RowLog, rows: int, offset: Flat, total: int, stop: int) -> Factor:
    """U with U'U ≈ Σ (θ_i - mean)(θ_i - mean)' over all `total` iterates; `offset` is mean - reference.

    The iterates are those before row number `stop`, in sketches of `rows` rows.

    Sketch rows stand as they are. The m newer iterates enter as sqrt(i / (i - 1)) e_i with e_i = θ_i minus the running
    mean, whose outer products sum to the exact scatter without a second pass.
    """
    live, sketched = live_rows(log, rows, stop)
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
    factor = scatter_factor(log, rows, offset, total, log.count)
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


def check_repeats(log: RowLog, count: int, step: int, x: Flat) -> None:
    """Raise `ResumeError` unless `x`, of `step`, is the row recorded the first time after `count` iterates."""
    number = iterate_numbers(log, count)[0]
    journal = log.journal
    if int(journal.steps[number]) != step or int(journal.crcs[number]) != log.checksum(x):
        raise ResumeError(
            f"iterate {count + 1} (step {step}) is not what was recorded (step {journal.steps[number]}): the run does "
            f"not repeat itself; moments.rewind({count}) drops what was recorded after this point"
        )

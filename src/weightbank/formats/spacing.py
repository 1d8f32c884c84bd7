"""How far apart the numbers of a format are around given weights."""

from weightbank.types import Flat

RUN = 64
"""Neighbours over which the step of a format is taken to be the same, unless its blocks are longer."""


def step_sizes(exact: Flat, rounded: Flat, run: int) -> Flat:
    """How far apart the numbers of a format are at each position, (N,): √(12 E[δ²]) over runs of `run` neighbours.

    As errors of rounding to nearest are uniform over one step, whose variance is a twelfth of its square.
    """
    count = len(exact)
    error = exact.new_zeros(-(-count // run) * run)
    error[:count] = (rounded - exact).square()
    sizes = error.view(-1, run).sum(1)
    sizes[:-1] /= run
    sizes[-1] /= count - (len(sizes) - 1) * run
    return (12 * sizes).sqrt().repeat_interleave(run)[:count]

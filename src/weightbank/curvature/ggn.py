"""The exact diagonal of the generalized Gauss-Newton matrix (Schraudolph 2002), a Hessian that is never negative."""

import torch

from weightbank.curvature.held import holding
from weightbank.curvature.per_example import PerExample
from weightbank.curvature.reading import batches
from weightbank.progress import progress
from weightbank.task import Task
from weightbank.types import Flat

MEMORY = 64 * 2**20
"""Bytes for gradients of single examples."""


def ggn(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Flat:
    """The diagonal of Jᵀ H J / units, shape (P,), in loss per example per squared weight, with nothing drawn at random.

    Per example, h += Σ_k (Jᵀ s_k)² over the columns of a factor S of the outputs' Hessian H = S Sᵀ: for softmax
    s_c = √p_c (e_c - p). A unit is one labelled position (classification) or one number (regression). For networks of
    linear layers, ReLU and max-pooling, whose outputs are piecewise linear in each single weight, this equals the
    diagonal of the Hessian; it is never negative. The result does not depend on the batch size.

    Costs one backward pass per example and output number, so it is for few classes. Linear layers that see one row per
    example are cheap; other weights take a gradient per example, so many at once as `memory` holds. The model runs in
    evaluation mode; it and everybody's random state are as before afterwards.

    Args:
        task: the model with its loss and training data.
        images: the first so many training examples; None (or more than there are) takes all.
        batch_size: the most examples at once; larger loader batches are cut.
        generator: seeds the order in which a shuffling loader hands out examples, which matters with `images` only;
            None is a fresh one with seed 0.
        memory: bytes for gradients of single examples.

    Raises:
        CurvatureError: for a loss without known curvature, random outputs, augmented training data, examples that
            depend on each other.
        DataError: for empty data and arguments out of range.
        NonFiniteError: for NaN or infinite outputs or scores.
    """
    units = 0.0
    with holding(task, generator) as held, progress(f"{task.name}: curvature", images) as bar:
        squares = PerExample(held, lambda head: head.columns(), memory)
        for number, (x, y) in enumerate(batches(task, images, batch_size)):
            if number == 0:
                held.examine(x, y)
                held.examine_alone(x, y)
            units += squares.add(x, y)
            bar.advance(len(y))
        return held.mean(squares.total, units)

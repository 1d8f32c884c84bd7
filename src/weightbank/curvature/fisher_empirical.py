"""The empirical Fisher information: squared gradients at the labels of the data, one example at a time."""

import torch

from weightbank.curvature.ggn import MEMORY
from weightbank.curvature.held import holding
from weightbank.curvature.losses import any_head_of
from weightbank.curvature.per_example import PerExample
from weightbank.curvature.reading import batches
from weightbank.progress import progress
from weightbank.task import Task
from weightbank.types import Flat


def fisher_empirical(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Flat:
    """1/units Σ_n (∂ℓ_n/∂θ)², shape (P,), with ℓ_n the summed loss of example n at its own label.

    A curvature only as far as the model's predictions match the labels: on perfectly fitted data it vanishes, while
    `fisher`, which takes the labels from the model, does not (Kunstner, Balles, Hennig 2019, arXiv 1905.12558). Where
    losses of examples have class weights a, (√a ∂)² is summed, as for `ggn`. It works with any loss that is a mean
    over examples; one that is unknown counts one unit per example, the four known ones their labelled positions or
    numbers. The result does not depend on the batch size. For a log-likelihood the unit is that of `ggn`.

    Args:
        task: the model with its loss and training data.
        images: the first so many training examples; None (or more than there are) takes all.
        batch_size: the most examples at once; larger loader batches are cut.
        generator: seeds the order in which a shuffling loader hands out examples, which matters with `images` only;
            None is a fresh one with seed 0.
        memory: bytes for gradients of single examples.

    Raises:
        CurvatureError: for random outputs, augmented training data, examples that depend on each other.
        DataError: for empty data and arguments out of range.
        NonFiniteError: for NaN or infinite outputs or scores.
    """
    units = 0.0
    with (
        holding(task, generator, any_head_of) as held,
        progress(f"{task.name}: empirical Fisher information", images) as bar,
    ):
        squares = PerExample(held, lambda head: [head.observed()], memory)
        for number, (x, y) in enumerate(batches(task, images, batch_size)):
            if number == 0:
                held.examine(x, y)
                held.examine_alone(x, y)
            units += squares.add(x, y)
            bar.advance(len(y))
        return held.mean(squares.total, units)

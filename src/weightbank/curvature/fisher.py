"""The Fisher information's diagonal, exactly where that is affordable."""

import torch

from weightbank.curvature.ggn import ggn
from weightbank.curvature.ggn_sampled import ggn_sampled
from weightbank.curvature.held import holding
from weightbank.curvature.reading import Examples, batches
from weightbank.task import Task
from weightbank.types import Flat

FEW_OUTPUTS = 16
"""Numbers per example up to which the Fisher information is computed exactly."""


def fisher(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    outputs: int = FEW_OUTPUTS,
) -> Flat:
    """E_x E_{y~p(y|x,θ)} (∂ log p(y|x,θ)/∂θ)², shape (P,), in loss per example per squared weight.

    For cross-entropy, binary cross-entropy and squared errors (read as -log p up to a constant) the Fisher information
    is the Gauss-Newton matrix (Martens 2014, arXiv 1412.1193), so this is `ggn` for models of at most `outputs` numbers
    per example, else `ggn_sampled`. Arguments and errors are theirs; with `images` None the one takes all training
    examples, the other as many as it needs.
    """
    with holding(task, generator) as held:
        x, y = next(batches(task, 1))
        size = held.examine(x, y).z.numel() / len(Examples.of(x, y))
    chosen = ggn if size <= outputs else ggn_sampled
    return chosen(task, images=images, batch_size=batch_size, generator=generator)

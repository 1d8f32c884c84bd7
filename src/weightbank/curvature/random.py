"""A random order of weights: the baseline below all others."""

import torch

from weightbank.task import Task
from weightbank.types import Flat


def random(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Flat:
    """Uniform numbers in [0, 1), shape (P,), without unit; from `generator`, or from a fresh one with seed 0.

    The other arguments are there for the common signature.
    """
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    dtype = torch.promote_types(task.layout.dtype, torch.float32)
    drawn = torch.rand(task.layout.size, generator=generator, device=generator.device, dtype=dtype)
    return drawn.to(task.device)

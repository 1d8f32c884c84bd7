"""The size of a weight, as if large weights mattered most: the usual baseline."""

import torch

from weightbank.task import Task
from weightbank.types import Flat


def magnitude(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    relative: bool = False,
) -> Flat:
    """|θ|, shape (P,), in weight units: an order of weights, no curvature. Reads no data.

    With `relative`, each weight over the largest of its tensor, without unit: as a device sees weights whose range is
    set tensor by tensor. The other arguments are there for the common signature.
    """
    theta = task.theta().abs_()
    if relative:
        for entry in task.layout.entries:
            part = theta[entry.offset : entry.offset + entry.size]
            if entry.size:
                part.div_(part.max().clamp_(min=torch.finfo(part.dtype).tiny))
    return theta

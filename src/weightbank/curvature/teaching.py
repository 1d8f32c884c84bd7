"""How far a network's predictions are from those of another: by how much the loss of the other's predictions rises.

KL(p ‖ p') of classifications, the squared difference of regressions: what distillation minimises (Hinton et al. 2015,
arXiv 1503.02531). Its second derivative in the weights is the Gauss-Newton matrix, so for a small change δ of weights
that act each for itself it is ½ Σ h δ².
"""

from typing import Any

import torch
from torch import Tensor

from weightbank.curvature.heads import Head, loss_itself
from weightbank.curvature.losses import head_of
from weightbank.errors import CurvatureError
from weightbank.types import Loss


def divergence(loss: Loss, output: Any, reference: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """The summed divergence of `output` from `reference`, differentiable, and the number of units it is a sum over.

    `loss(output, target)` is a task's; what it does to outputs first is done to both. Labels count only as far as they
    say which positions matter, unless the loss is of no known kind: then this is the rise of the loss itself.
    """
    with torch.no_grad():
        fixed = _head(loss, reference, target)
    return fixed.divergence(_head(loss, output, target).z), fixed.total


def mean_divergence(loss: Loss, output: Any, reference: Any, target: Tensor) -> Tensor:
    """The same per unit; zero where no position has a label."""
    total, units = divergence(loss, output, reference, target)
    return total / units.clamp(min=torch.finfo(units.dtype).tiny)


def _head(loss: Loss, output: Any, target: Tensor) -> Head:
    try:
        return head_of(loss, output, target)
    except CurvatureError:
        return loss_itself(loss(output, target), len(target))

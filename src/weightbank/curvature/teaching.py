"""How far a network's predictions are from those of another: by how much the loss of the other's predictions rises.

KL(p ‖ p') of classifications, the squared difference of regressions: what distillation minimises (Hinton et al. 2015,
arXiv 1503.02531). Its second derivative in the weights is the Gauss-Newton matrix, so for a small change δ of weights
that act each for itself it is ½ Σ h δ².
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightbank.curvature.heads import Head, loss_itself
from weightbank.curvature.losses import head_of
from weightbank.errors import CurvatureError
from weightbank.task import Task, as_pair
from weightbank.types import Batches, Flat, Inputs, Loss

STEPS = 200
"""Of rounding by example, unless another number is asked for."""
REACH = 1.0
"""How far all of them together may move a weight, in steps of its format. Halving or doubling it changes little."""
CHECKS = 4
"""Candidates looked at on the way."""


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


def divergence_on(
    data: Batches, task: Task, predict: Callable[[Inputs], Any], taught: Callable[[Inputs], Any]
) -> float:
    """Of `predict` from `taught` over all batches, per unit; NaN where no position has a label."""
    total, units = 0.0, 0.0
    for batch in data:
        x, y = as_pair(batch, task.device, f"{task.name}: held-back data")
        with torch.no_grad():
            far, count = divergence(task.loss, predict(x), taught(x), y)
        total, units = total + float(far), units + float(count)
    return total / units if units else math.nan


def step_scaled(optimizer: torch.optim.Optimizer, values: Flat, spread: Flat) -> None:
    """One step of an optimizer of `values`, (N,), in units of `spread` at each of them."""
    with torch.no_grad():
        before = values.clone()
        optimizer.step()
        torch.lerp(before, values, spread, out=values)


def _head(loss: Loss, output: Any, target: Tensor) -> Head:
    try:
        return head_of(loss, output, target)
    except CurvatureError:
        return loss_itself(loss(output, target), len(target))

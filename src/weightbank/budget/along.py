"""The increase of the loss along a law's own perturbations, with the gradient and all of the Gauss-Newton matrix."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from weightbank.budget.increase import over_batches, over_draws
from weightbank.distributions.distribution import WeightDistribution
from weightbank.evaluation.estimate import Estimate
from weightbank.task import Source, Task, as_batches
from weightbank.types import Flat, Inputs


def increase_along(
    task: Task,
    law: WeightDistribution,
    samples: int = 30,
    *,
    theta: Flat | None = None,
    data: Source | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """E[g · δ + ½ δ' G δ], δ = θ' - θ drawn from `law`: by how much the mean loss should rise, in units of the loss.

    `expected_increase` takes weights to err independently and the gradient to be nought. Rounding to nearest, shared
    pages and posteriors with correlated weights do not oblige: here are the gradient g and all of the Gauss-Newton
    matrix G (Schraudolph 2002) at θ, nothing of it formed: with z the outputs and J δ their derivative along δ,
    ½ (J δ)' H (J δ), H the loss's Hessian in the outputs. The loss is looked at at θ only.

    Args:
        task: its model is run in evaluation mode, at θ.
        law: of the perturbed weights θ'.
        samples: draws; one forward-mode derivative over the data for each.
        theta: θ, shape (P,); the task's weights if None.
        data: the task's training data if None.
        generator: of the draws.

    `values` holds one number per draw, paired with those of `measured_increase` for equal generators. Raises
    `LayoutError` for a law over other weights, `DataError` for fewer than one draw or no data.
    """
    at = (task.theta() if theta is None else theta).detach().to(task.device)
    batches = task.train if data is None else as_batches(data, task.batch_size, shuffle=False)

    def rise(draw: Flat) -> float:
        delta = draw.to(at) - at

        def of_batch(x: Inputs, y: Tensor) -> float:
            output, change = _derivative(partial(_predict, task, x), at, delta)
            return _second_order(task, output, change, y)

        return over_batches(task, batches, of_batch)

    return over_draws(task, law, samples, generator, rise)


def _derivative(predict: Callable[[Tensor], Tensor], at: Flat, delta: Flat) -> tuple[Tensor, Tensor]:
    """The outputs at `at` and their derivative along `delta`."""
    with warnings.catch_warnings():  # torch compiles some derivatives of its own with a part it calls deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        found = torch.func.jvp(predict, (at,), (delta,))
    return found[0], found[1]


def _predict(task: Task, x: Inputs, theta: Tensor) -> Tensor:
    output: Tensor = task.predict(theta, x)
    return output


def _second_order(task: Task, output: Tensor, change: Tensor, y: Tensor) -> float:
    """First and half the second derivative of the mean loss at `output` along `change`."""

    def along(step: Tensor) -> Tensor:
        loss: Tensor = task.loss(output + step * change, y)
        return loss

    with torch.enable_grad():
        step = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        (first,) = torch.autograd.grad(along(step), step, create_graph=True)
        (second,) = torch.autograd.grad(first, step)
    return float(first) + 0.5 * float(second)

"""What selective write-verify is compared with: first derivatives as scores, and training with injected noise.

Magnitude and random orders are in `weightbank.curvature`, most significant cells first in `policies.by_significance`,
in-situ retraining in `insitu`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weightbank.cim.cells import Cells
from weightbank.cim.device import Device
from weightbank.cim.program import Chip
from weightbank.distributions.distribution import seed_of
from weightbank.task import Task
from weightbank.types import Flat
from weightbank.undisturbed import undisturbed


def first_derivative(task: Task) -> Flat:
    """|∂ loss / ∂ w| of the mean training loss, shape (P,), in loss per weight: what a first-order expansion ranks by.

    One pass over the training data in evaluation mode.
    """
    theta = task.theta()
    total, count = torch.zeros_like(theta), 0
    with undisturbed(task.train, device=task.device, seed=0):
        for x, y in task.batches("train"):
            free = theta.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(task.loss(task.predict(free, x), y), free)
            total.add_(gradient, alpha=len(y))
            count += len(y)
    return total.abs_().div_(count).to("cpu")


@contextmanager
def noise_injection(
    task: Task, optimizer: torch.optim.Optimizer, device: Device, *, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Train with the errors of `device` on the weights: a fresh chip for each step, within the `with` block.

    Each forward pass in training mode sees the weights of a chip programmed with the present ones; the gradient there
    is applied to the exact weights. Use it around `epochs(task, optimizer, ...)`; what `each_step` and `task.theta()`
    see between steps are the exact weights. `Device(sigma=s, verified_sigma=s)` is the published train_sigma s.
    """
    seed, number = seed_of(generator), 0
    exact: list[Flat] = []
    layout = task.layout

    def restore(*_: object) -> None:
        if exact:
            layout.assign(task.model, exact.pop())

    def inject(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal number
        restore()
        if model.training and torch.is_grad_enabled():
            theta = task.theta()
            chip = Chip(Cells.of(layout, device, theta))
            number += 1
            draw = next(chip.draws(1, generator=torch.Generator().manual_seed((seed + number) % 2**62)))
            layout.assign(task.model, draw.to(theta.device))
            exact.append(theta)

    hooks = [task.model.register_forward_pre_hook(inject), optimizer.register_step_pre_hook(restore)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        restore()

"""From drawn weights to a forward function: one by one, many at once, or with BatchNorm statistics refreshed."""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from weightbank.evaluation.outputs import tensor_of
from weightbank.task import Task, apply
from weightbank.types import Draws, Flat, Inputs
from weightbank.undisturbed import undisturbed

Forward: TypeAlias = Callable[[Inputs], list[Any]]
"""Inputs of one batch to one output per draw."""

Load: TypeAlias = Callable[[Draws], Forward]
"""A few draws to their forward function, which holds until the next draws are loaded."""


def one_by_one(task: Task) -> Load:
    """Each draw alone, through the task's own model; its weights stay put."""
    return lambda draws: lambda x: [task.predict(theta, x) for theta in draws]


def vectorized(task: Task) -> Load:
    """All loaded draws in one `torch.func.vmap`; memory for activations grows with their number."""

    def load(draws: Draws) -> Forward:
        def forward(x: Inputs) -> list[Any]:
            outputs = torch.func.vmap(lambda theta: tensor_of(task.predict(theta, x)))(draws)
            return list(outputs.unbind(0))

        return forward

    return load


def in_groups(draws: Iterable[Flat], size: int, task: Task) -> Iterator[Draws]:
    """The draws on the task's device, `size` at a time, the last group maybe smaller.

    A group holds until the next one is asked for; groups of one are views, larger ones reuse one (size, P) buffer.
    """
    if size == 1:
        for theta in draws:
            yield theta.to(task.device)[None]
        return
    buffer = torch.empty(size, task.layout.size, dtype=task.layout.dtype, device=task.device)
    filled = 0
    for theta in draws:
        buffer[filled].copy_(theta)
        filled += 1
        if filled == size:
            yield buffer
            filled = 0
    if filled:
        yield buffer[:filled]


def has_running_statistics(model: nn.Module) -> bool:
    """Whether any BatchNorm module keeps running statistics, which belong to weights they were collected with."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


class Refreshed:
    """A copy of the model that takes each draw's weights and collects BatchNorm statistics for them.

    Statistics are the plain averages over the first `batches` training batches (all if None), by
    `torch.optim.swa_utils.update_bn`, in training mode. Every draw sees the same batches in the same order with the
    same dropout masks. The copy's other buffers start from the model's for every draw; the model is never touched.
    """

    def __init__(self, task: Task, batches: int | None, seed: int) -> None:
        self.task, self.batches, self.seed = task, batches, seed
        self.model = copy.deepcopy(task.model)

    def __call__(self, draws: Draws) -> Forward:
        """Load one draw, pass over the training batches, and return the copy's forward function."""
        (theta,) = draws
        with torch.no_grad():
            self.task.layout.assign(self.model, theta)
            for own, original in zip(self.model.buffers(), self.task.model.buffers(), strict=True):
                own.copy_(original)
            with undisturbed(self.task.train, device=self.task.device, seed=self.seed):
                update_bn(self._inputs(), _OneInput(self.model))
        self.model.eval()
        return lambda x: [apply(self.model, x)]

    def _inputs(self) -> Iterator[list[Inputs]]:
        for x, _ in islice(self.task.batches("train"), self.batches):
            yield [x]


class _OneInput(nn.Module):
    """`update_bn` calls a module with one argument; tuples and dicts of inputs are spread out here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Inputs) -> Any:
        return apply(self.model, x)

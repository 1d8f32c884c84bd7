"""A task held still: one fixed function of its weights and its training examples, or an error that says why not."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from weightbank.curvature.heads import Head
from weightbank.curvature.losses import check_head, head_of
from weightbank.curvature.reading import Examples
from weightbank.curvature.repeats import check_data
from weightbank.errors import CurvatureError, DataError, NonFiniteError
from weightbank.task import Task, as_call, evaluating
from weightbank.types import Flat, Inputs, Loss
from weightbank.undisturbed import undisturbed

FEW = 32
"""Examples of the first batch that the model is tried on."""

NEGLIGIBLE = 1e-6
"""Outputs and losses this small may differ by their own size: they are rounding errors of larger numbers."""

HeadOf = Callable[[Loss, Any, Tensor], Head]


class Held:
    """A task whose model computes with leaves of its own: the same memory as the model's weights, other `.grad`s.

    Buffers are copies, so a forward pass that writes into them changes nothing outside.
    """

    def __init__(self, task: Task, find_head: HeadOf = head_of) -> None:
        self.task, self.layout, self._find_head = task, task.layout, find_head
        model = task.model
        own = dict(model.named_parameters())
        self.leaves: dict[str, Tensor] = {name: own[name].detach().requires_grad_() for name in task.layout.names}
        first = {id(parameter): name for name, parameter in own.items()}
        tied = model.named_parameters(remove_duplicate=False)
        self._first = {name: first[id(parameter)] for name, parameter in tied}
        copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
        self._fixed = {name: parameter.detach() for name, parameter in own.items()}
        self._buffers = {name: copies[id(buffer)] for name, buffer in model.named_buffers(remove_duplicate=False)}

    def output(self, x: Inputs, leaves: Mapping[str, Tensor] | None = None) -> Any:
        """What the model returns for `x`."""
        args, kwargs = as_call(x)
        values = {**self._fixed, **(self.leaves if leaves is None else leaves)}
        state = {name: values[first] for name, first in self._first.items()} | self._buffers
        return torch.func.functional_call(self.task.model, state, args, kwargs, tie_weights=False)

    def head(self, x: Inputs, y: Tensor) -> Head:
        """The outputs of one batch and their curvature."""
        return self.head_at(self.output(x), y)

    def head_at(self, output: Any, y: Tensor) -> Head:
        """The head of an output of the model."""
        return self._find_head(self.task.loss, output, y)

    def checked_head(self, x: Inputs, y: Tensor) -> Head:
        """`head`; raises `NonFiniteError` for outputs that are NaN or infinite."""
        head = self.head(x, y)
        bad = head.z.numel() - int(head.z.detach().isfinite().sum())
        if bad:
            raise NonFiniteError(
                f"{self.task.name}: {bad} of the {head.z.numel()} outputs of a batch of {len(y)} training examples are "
                "NaN or infinite; look for bad weights or bad inputs"
            )
        return head

    def examine(self, x: Inputs, y: Tensor) -> Head:
        """Try the model twice on a first few examples; the head of the second time.

        Raises `CurvatureError` if outputs differ or are no function of the weights.
        """
        examples = Examples.of(x, y)
        if examples.separable:
            x, y = examples.slice(0, FEW)
        first, second = self.checked_head(x, y), self.checked_head(x, y)
        check_head(self.task.name, second)
        if first.z.shape != second.z.shape or not _close(first.z, second.z, 16 * _epsilon(first.z)):
            raise CurvatureError(
                f"{self.task.name}: the model in evaluation mode gave two outputs for the same {len(y)} inputs; a "
                "layer that draws random numbers outside of training has no one curvature: switch it off"
            )
        return second

    def examine_alone(self, x: Inputs, y: Tensor) -> None:
        """Raise `CurvatureError` if the first two examples have other outputs together than alone."""
        examples = Examples.of(x, y)
        if not examples.separable:
            raise CurvatureError(
                f"{self.task.name}: none of the inputs has a first dimension of {len(y)} as the targets have, so "
                "single examples cannot be told apart; put examples first in inputs and targets, or take ggn_sampled"
            )
        if len(examples) < 2:
            return
        together, *alone = (self.head(*examples.slice(*ends)).z.detach() for ends in ((0, 2), (0, 1), (1, 2)))
        joined = torch.cat(alone) if together.ndim else alone[0] + alone[1]
        if together.shape != joined.shape or not _close(together, joined, _epsilon(together) ** 0.5):
            raise CurvatureError(
                f"{self.task.name}: the first two training examples have other outputs together than alone (shapes "
                f"{tuple(together.shape)} and {tuple(joined.shape)}); wanted examples along the first dimension of "
                "inputs and targets, independent of each other, and a loss that is a mean; or take ggn_sampled"
            )

    def mean(self, total: Flat, units: float) -> Flat:
        """`total / units`, in place; raises `DataError` without units and `NonFiniteError` for NaN or infinity."""
        if not units > 0:
            raise DataError(f"{self.task.name}: the weights of the training labels add up to {units}; wanted some > 0")
        total.div_(units)
        if not math.isfinite(float(total.sum())):  # without a temporary as large as the weights
            places = (~total.isfinite()).nonzero()
            if len(places):
                name = next(e.name for e in self.layout.entries if int(places[0]) < e.offset + e.size)
                raise NonFiniteError(
                    f"{self.task.name}: {len(places)} of {len(total)} scores are NaN or infinite, the first in "
                    f"'{name}'; look for bad weights or inputs, or compute in float64"
                )
        return total

    def zeros(self) -> Flat:
        """A flat vector for scores: the weights' dtype, but float32 at least."""
        dtype = torch.promote_types(self.layout.dtype, torch.float32)
        return torch.zeros(self.layout.size, dtype=dtype, device=self.task.device)

    def views(self, flat: Flat) -> dict[str, Tensor]:
        """Each parameter's part of a flat vector, in the parameter's shape."""
        return {e.name: flat[e.offset : e.offset + e.size].view(e.shape) for e in self.layout.entries}


@contextmanager
def holding(task: Task, generator: torch.Generator | None, find_head: HeadOf = head_of) -> Iterator[Held]:
    """Evaluation mode, a repeatable order of examples, and everybody's random numbers put back at the end.

    Raises `CurvatureError` for training data that change from one reading to the next, and for BatchNorm without
    running statistics, whose outputs depend on the batch.
    """
    batchwise = [n for n, m in task.model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is None]
    if batchwise:
        raise CurvatureError(
            f"{task.name}: '{batchwise[0]}' normalizes by each batch's own statistics, so an example's loss depends on "
            "its batch; wanted track_running_stats=True"
        )
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device)) if generator else 0
    with evaluating(task.model), undisturbed(task.train, device=task.device, seed=seed):
        check_data(task)
        yield Held(task, find_head)


@contextmanager
def squaring(held: Held, total: Flat) -> Iterator["Squares"]:
    """For the time of a `with` block, backward passes may add squared gradients to `total`."""
    squares = Squares(held, total)
    try:
        yield squares
    finally:
        squares.close()


class Squares:
    """Squared gradients of the weights, added up in one flat vector while a backward pass goes by.

    Each gradient is squared and dropped as soon as it is complete, so only one is alive at a time.
    """

    def __init__(self, held: Held, total: Flat) -> None:
        self._leaves = list(held.leaves.values())
        views = held.views(total)
        self._handles = [
            leaf.register_post_accumulate_grad_hook(partial(_add_square, views[name]))  # type: ignore[no-untyped-call]
            for name, leaf in held.leaves.items()
        ]

    def add(self, z: Tensor, r: Tensor, *, retain: bool = False) -> None:
        """Add (∂(z·r)/∂θ)²; with `retain` the graph of z can be used again."""
        torch.autograd.backward(z, r, inputs=self._leaves, retain_graph=retain)

    def close(self) -> None:
        """Let go of the leaves."""
        for handle in self._handles:
            handle.remove()


def _add_square(view: Tensor, leaf: Tensor) -> None:
    gradient = leaf.grad
    leaf.grad = None
    if gradient is not None:
        gradient = (gradient.to_dense() if gradient.is_sparse else gradient).to(view)
        view.addcmul_(gradient, gradient)


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Equal but for what other kernels and summation orders may do."""
    first, second = first.detach().double(), second.detach().double()
    scale = max(float(first.abs().max()), float(second.abs().max()), NEGLIGIBLE)
    return bool((first - second).abs().max() <= tolerance * scale)


def _epsilon(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps

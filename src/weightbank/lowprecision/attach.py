"""A precision on a model that need not be edited: hooks that can be taken off again without a trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType, TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn

from weightbank.errors import PrecisionError
from weightbank.formats import Rounding
from weightbank.formats.opaque import uncompiled
from weightbank.lowprecision.coverage import Coverage, trace
from weightbank.lowprecision.forward import Functional, StraightThrough, wrapped
from weightbank.lowprecision.optimizer import Steps
from weightbank.lowprecision.points import ACTIVATIONS, Clock, Evaluating, Point
from weightbank.lowprecision.quantities import Formats, Order
from weightbank.types import Inputs

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)
_TAKEN: WeakSet[nn.Module] = WeakSet()


class Attached:
    """A model with a `Precision` on it; made by `Precision.attached`, usable in a `with` block.

    The outputs of activation modules (and of those named by rules) are quantized in the forward pass, and the
    gradients there in the backward pass, by forward hooks. Nothing of the model's own is replaced: parameters,
    buffers, classes and the keys of its state_dict are the same objects, and `detach` leaves hooks and attributes as
    they were. A deep copy of the model is quantized like the original, until it is thrown away. Forward passes without
    gradients or in evaluation mode draw from random streams of their own, so they change nothing in training; passes
    that `torch.utils.checkpoint` repeats draw other bits than the first time.

    `torch.compile` works: each quantization is a break in its graph, so torch refuses `fullgraph=True`; models with
    `functional` or straight-through weights run uncompiled. Attaching discards all graphs made so far, which torch then
    makes anew, because one of this model would go on without quantizing.
    """

    def __init__(
        self,
        model: nn.Module,
        formats: Mapping[str, Formats],
        *,
        rounding: Rounding,
        seed: int,
        order: Order,
        straight_through: bool,
        packed: bool,
        functional: Formats | None,
    ) -> None:
        self.model, self.formats = model, dict(formats)
        self.attached = True
        self._straight_through, self._order, self._packed = straight_through, order, packed
        self._clock = Clock(rounding, seed)
        self._steps: list[Steps] = []
        self._handles: list[Any] = []
        self._functional = functional
        mode = None if functional is None else Functional(self._clock, functional)
        for name, module in model.named_modules():
            if module in _TAKEN:
                raise PrecisionError(f"'{name}' has a precision on it already; detach that first")
        _TAKEN.update(model.modules())
        for name, module in model.named_modules():
            chosen = self.formats[name]
            own = chosen.activations is not None or chosen.errors is not None
            if own:
                point = Point(self._clock, name, chosen.activations, chosen.errors)
                self._handles.append(module.register_forward_hook(uncompiled(point.hook)))
            if mode is not None and (own or isinstance(module, ACTIVATIONS)):
                self._handles.append(module.register_forward_pre_hook(mode.enter_module))
                self._handles.append(module.register_forward_hook(mode.leave_module, always_call=True))
        weights = StraightThrough(model, self._clock, self.formats) if straight_through else None
        self._wrapped = weights is not None or mode is not None
        if self._wrapped:
            self._before = model.__dict__.get("forward")
            model.forward = MethodType(uncompiled(wrapped(model, weights, mode)), model)
        torch.compiler.reset()  # a graph made before does not look for hooks that came later

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Put the weights on their grid, and the roundings of gradients, momentum and weights around each step.

        The same optimizer is returned; any of torch.optim or of that interface works, with schedulers, closures,
        parameter groups, gradient scaling. Its `state_dict` has one key more, with the accumulators and the count of
        steps, from which a run goes on with the same bits. Weights changed by anybody else between two steps are taken
        as the new ones, accumulators start from them.

        Raises `PrecisionError` if none of its parameters is of this model or it came here before, `NonFiniteError` in
        a step for a gradient or a weight that is NaN or infinite, naming it.
        """
        self._check()
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise PrecisionError(f"wanted an optimizer such as torch.optim.SGD(model.parameters()), not {optimizer!r}")
        if any(steps.optimizer is optimizer for steps in self._steps):
            raise PrecisionError("this optimizer has the roundings around its steps already; hand it over once")
        self._steps.append(
            Steps(
                optimizer,
                self._parameters(),
                rounding=self._clock.rounding,
                seed=self._clock.seed,
                order=self._order,
                straight_through=self._straight_through,
                packed=self._packed,
                stepped=self._stepped,
            )
        )
        return optimizer

    @contextmanager
    def evaluating(self, activations: Evaluating = "keep") -> Iterator["Attached"]:
        """Quantize activations as in training ("keep"), to the nearest ("nearest"), or not at all ("off"), inside.

        Weights are as they are: so iterates and averages can be compared like for like. Stochastic rounding draws the
        same bits in each such block between two steps.
        """
        if activations not in ("keep", "nearest", "off"):
            raise PrecisionError(f"activations={activations!r}; wanted 'keep', 'nearest' or 'off'")
        with self._clock.evaluating(activations):
            yield self

    def report(self, x: Inputs) -> Coverage:
        """Run one batch and say which results were quantized and which stayed in full precision; nothing changes.

        Modules that hooks cannot see into and functional calls show up here; `functional=True` covers the latter.
        """
        self._check()
        stepped = {held.name for steps in self._steps for held in steps.held}
        quantized = {
            name: chosen.weights
            for name, (_, chosen) in self._parameters().items()
            if self._straight_through or name in stepped
        }
        return trace(self.model, x, self.formats, self._functional, quantized)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes between two steps: weights, accumulators apart from them, optimizer state per weight (momentum)."""
        total = {"weights": 0, "accumulator": 0, "state": 0}
        for steps in self._steps:
            for name, count in steps.nbytes.items():
                total[name] += count
        return total

    def detach(self) -> None:
        """Take everything off: hooks of the modules and of the optimizers; weights keep their present values."""
        if not self.attached:
            return
        self.attached = False
        _TAKEN.difference_update(self.model.modules())
        for handle in self._handles:
            handle.remove()
        for steps in self._steps:
            steps.detach()
        if self._wrapped:
            del self.model.forward
            if self._before is not None:
                self.model.forward = self._before

    def __enter__(self) -> "Attached":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _stepped(self) -> None:
        self._clock.step = sum(steps.step for steps in self._steps)

    def _parameters(self) -> dict[str, tuple[nn.Parameter, Formats]]:
        """Every parameter, tied ones under their first name, with the formats of the module that owns it."""
        found: dict[str, tuple[nn.Parameter, Formats]] = {}
        for name, parameter in self.model.named_parameters():
            found[name] = parameter, self.formats[name.rpartition(".")[0]]
        return found

    def _check(self) -> None:
        if not self.attached:
            raise PrecisionError("this precision is detached; attach it again with precision.attached(model)")

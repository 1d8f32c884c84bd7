"""The roundings around one step of any torch optimizer (SWALP, arXiv 1904.11943, Algorithm 2), as step hooks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightbank.errors import PrecisionError
from weightbank.formats import Format, Packed, Rounding
from weightbank.formats.opaque import uncompiled
from weightbank.lowprecision.quantities import Formats, Order
from weightbank.lowprecision.round_trip import Rounder

FULL = {
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "variance", "step_size"),
    "grad_avg",  # centered RMSprop takes the root of square_avg - grad_avg^2, which rounding could make negative
    *("step", "eta", "mu", "mu_product"),  # of the shape of a 0-d parameter
}
"""Optimizer state left in full precision: counts, and what is divided by, where a square rounded to zero would be."""

STATE = "low_precision"


@dataclass
class Held:
    """One parameter and what is kept for it between steps."""

    name: str
    parameter: nn.Parameter
    formats: Formats
    separate: bool  # an accumulator apart from the weights
    accumulator: Tensor | Packed | None = None
    weights: Tensor | None = None  # the parameter's own storage while the accumulator is in its place
    version: int | None = None  # of the parameter after the last step; None trusts whatever is there


class Steps:
    """Step hooks on one optimizer; `detach` takes them off and leaves a plain optimizer in full precision."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, tuple[nn.Parameter, Formats]],
        *,
        rounding: Rounding,
        seed: int,
        order: Order,
        straight_through: bool,
        packed: bool,
        stepped: Callable[[], None],
    ) -> None:
        self.optimizer, self.rounding, self.seed, self.order, self.packed = optimizer, rounding, seed, order, packed
        self.straight_through, self._stepped = straight_through, stepped
        self.step = 0
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self.held = [
            Held(name, parameter, formats, self._separate(formats))
            for name, (parameter, formats) in parameters.items()
            if id(parameter) in own
        ]
        if not self.held:
            raise PrecisionError("the optimizer has no parameter of this model; build it from model.parameters()")
        for held in self.held:
            self._begin(held)
        self._handles = [
            optimizer.register_step_pre_hook(uncompiled(self._before)),
            optimizer.register_step_post_hook(uncompiled(self._after)),
            optimizer.register_state_dict_post_hook(self._saved),
            optimizer.register_load_state_dict_pre_hook(self._loading),
            optimizer.register_load_state_dict_post_hook(self._loaded),
        ]
        self._incoming: dict[str, Any] | None = None

    def detach(self) -> None:
        """Remove the hooks; unpack what is packed; the weights stay as they are, accumulators are dropped."""
        for handle in self._handles:
            handle.remove()
        self._show_weights()
        self._unpack_state()
        for held in self.held:
            held.accumulator = None

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes kept between steps: weights, accumulator, and the optimizer's state per weight."""
        found = {"weights": 0, "accumulator": 0, "state": 0}
        for held in self.held:
            found["weights"] += held.parameter.nbytes
            found["accumulator"] += 0 if held.accumulator is None else held.accumulator.nbytes
            found["state"] += sum(value.nbytes for _, value in self._tensors(held))
        return found

    def _separate(self, formats: Formats) -> bool:
        if self.straight_through or formats.weights is None:
            return False
        return self.order == "published" or formats.accumulator != formats.weights

    def _round(self, what: str, held: Held, format: Format | None, x: Tensor, out: Tensor | None = None) -> None:
        """Quantize `x` into `out`, by default in place; without a format only the copy is made."""
        if format is not None:
            self._rounder(what, held, format)(x, x if out is None else out)
        elif out is not None:
            out.copy_(x)

    def _rounder(self, what: str, held: Held, format: Format) -> Rounder:
        return Rounder(format, self.rounding, self.seed, f"{what} of '{held.name}'", self.step)

    def _begin(self, held: Held) -> None:
        """Put the parameter, as it is now, on its grid, and start an accumulator from it."""
        weights = held.parameter.detach()
        if not held.separate:
            self._round("weights", held, self._own(held), weights)
            return
        accumulator = weights.clone()
        self._round("accumulator", held, held.formats.accumulator, accumulator)
        self._round("weights", held, held.formats.weights, accumulator, out=weights)
        held.accumulator = accumulator
        self._pack_accumulator(held)

    def _own(self, held: Held) -> Format | None:
        """The format of a parameter that is its own accumulator."""
        formats = held.formats
        return formats.accumulator if self.straight_through or formats.weights is None else formats.weights

    @torch.no_grad()
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self.step += 1
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        for held in self.held:
            self._refresh(held)
        self._unpack_state()
        if closure is None:
            self._round_gradients()
            self._show_accumulators()
            return None

        def low_precision() -> Any:
            self._show_weights()
            loss = closure()
            with torch.no_grad():
                self._round_gradients()
            self._show_accumulators()
            return loss

        self._show_accumulators()
        kwargs = {name: value for name, value in kwargs.items() if name != "closure"}
        return (args[0], low_precision, *args[2:]), kwargs

    def _refresh(self, held: Held) -> None:
        """Start again from weights that somebody else has changed since the last step."""
        if held.separate and held.version not in (None, held.parameter._version):
            self._begin(held)

    def _round_gradients(self) -> None:
        for held in self.held:
            gradient = held.parameter.grad
            if gradient is None or held.formats.gradients is None:
                continue
            if gradient.layout != torch.strided:
                raise PrecisionError(
                    f"the gradient of '{held.name}' is sparse, which has no blocks; override(..., gradients=None) it"
                )
            self._round("gradients", held, held.formats.gradients, gradient)

    def _show_accumulators(self) -> None:
        for held in self.held:
            if held.separate and held.weights is None:
                accumulator = held.accumulator
                if isinstance(accumulator, Packed):
                    accumulator = accumulator.unpack(out=torch.empty_like(held.parameter))
                assert accumulator is not None
                held.weights = held.parameter.data
                held.parameter.data = accumulator
                held.accumulator = accumulator

    def _show_weights(self) -> None:
        for held in self.held:
            if held.weights is not None:
                held.parameter.data = held.weights
                held.weights = None

    @torch.no_grad()
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        try:
            for held in self.held:
                if held.parameter.grad is not None:
                    self._land(held)
        finally:
            self._show_weights()
        for held in self.held:
            self._pack_accumulator(held)
            held.version = held.parameter._version
        self._stepped()

    def _land(self, held: Held) -> None:
        """Round what the step has updated."""
        formats = held.formats
        if not held.separate:
            self._round("weights", held, self._own(held), held.parameter.detach())
        else:
            accumulator, weights = held.parameter.data, held.weights
            assert weights is not None
            self._round("accumulator", held, formats.accumulator, accumulator)
            self._round("weights", held, formats.weights, accumulator, out=weights)
        if formats.momentum is not None:
            for name, value in self._tensors(held):
                rounder = self._rounder(name, held, formats.momentum)
                if self.packed:
                    self.optimizer.state[held.parameter][name] = formats.momentum.pack(
                        value, rounding=rounder.rounding, key=rounder.key
                    )
                else:
                    rounder(value, value)
        if held.separate and self.order == "published":
            assert held.weights is not None
            self._round("weights again", held, formats.weights, held.weights)

    def _tensors(self, held: Held) -> list[tuple[str, Any]]:
        """The optimizer's state of this parameter that is momentum: floating, of its shape, not divided by."""
        state = self.optimizer.state.get(held.parameter, {})
        return [
            (name, value)
            for name, value in state.items()
            if isinstance(value, Packed)
            or (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.shape == held.parameter.shape
                and name not in FULL
            )
        ]

    def _pack_accumulator(self, held: Held) -> None:
        if self.packed and isinstance(held.accumulator, Tensor) and held.formats.accumulator is not None:
            held.accumulator = held.formats.accumulator.pack(held.accumulator)  # on the grid: exact

    def _unpack_state(self) -> None:
        for held in self.held:
            for name, value in self._tensors(held):
                if isinstance(value, Packed):
                    full = value.unpack(out=torch.empty_like(held.parameter))
                    self.optimizer.state[held.parameter][name] = full

    # saving and restoring: numbers are saved unpacked, so that packed and unpacked runs can read each other's ---------

    def _saved(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        per_parameter = {
            index: {name: _plain(value) for name, value in values.items()} for index, values in state["state"].items()
        }
        accumulators = {h.name: _plain(h.accumulator) for h in self.held if h.accumulator is not None}
        return {**state, "state": per_parameter, STATE: {"step": self.step, "accumulators": accumulators}}

    def _loading(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        self._incoming = state.get(STATE)
        return {name: value for name, value in state.items() if name != STATE}

    @torch.no_grad()
    def _loaded(self, optimizer: Any) -> None:
        incoming, self._incoming = self._incoming, None
        self.step = 0 if incoming is None else int(incoming["step"])
        for held in self.held:
            saved = None if incoming is None else incoming["accumulators"].get(held.name)
            held.version = None
            if held.separate and saved is not None:
                if saved.shape != held.parameter.shape:
                    raise PrecisionError(
                        f"the saved accumulator of '{held.name}' is {tuple(saved.shape)}, "
                        f"the parameter {tuple(held.parameter.shape)}; this state is of another model"
                    )
                held.accumulator = saved.to(held.parameter, copy=True)
                self._pack_accumulator(held)
            elif held.separate:
                held.version = -1  # of another kind of run: start from the weights there are at the next step
            if self.packed and held.formats.momentum is not None:
                for name, value in self._tensors(held):
                    self.optimizer.state[held.parameter][name] = held.formats.momentum.pack(value)
        self._stepped()


def _plain(value: Any) -> Any:
    return value.unpack() if isinstance(value, Packed) else value

"""Squared gradients of single examples, Σ_n Σ_k (J_nᵀ r_nk)², many examples at once where `torch.func.vmap` can."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightbank.curvature.heads import Head
from weightbank.curvature.held import Held, squaring
from weightbank.curvature.reading import Examples
from weightbank.curvature.taps import Plan, Tapping
from weightbank.types import Inputs

Residuals = Callable[[Head], Iterable[Tensor]]
"""The vectors r of one example, each of the shape of its outputs."""

COPIES = 3
"""Per-example arrays of P numbers alive at once: a gradient, its square, the sum of squares."""


class PerExample:
    """Adds up squared gradients over examples.

    The first example is computed one backward pass at a time as well. If `torch.func.vmap` fails on the model
    (operations in place, control flow that looks at data) or disagrees, every example is computed that way.

    held: the task; residuals: which gradients of an example to square; memory: bytes for per-example gradients.
    """

    def __init__(self, held: Held, residuals: Residuals, memory: int) -> None:
        self._held, self._residuals, self._memory = held, residuals, memory
        self.total = held.zeros()
        self._plan: Plan | None = None
        self._size = 1
        self._vectorized = True

    def add(self, x: Inputs, y: Tensor) -> float:
        """Add the examples of a batch, and return the sum of their units' weights."""
        examples, units = Examples.of(x, y), 0.0
        with sdpa_kernel(SDPBackend.MATH):
            if self._plan is None:
                self._try(Examples.of(*examples.slice(0, 1)))
            for start in range(0, len(examples), self._size):
                units += self._add(Examples.of(*examples.slice(start, start + self._size)))
        return units

    def _try(self, first: Examples) -> None:
        """Decide on the first example what to tap, how many examples to take at once, and between the two ways."""
        self._plan = Plan.of(self._held, *first.slice(0, 1))
        weights = self._held.layout.size - self._plan.size + 1
        self._size = max(1, self._memory // (COPIES * weights * self.total.element_size()))
        self._one_by_one(first)
        expected, self.total = self.total, self._held.zeros()
        self._add(first)
        error = float((self.total - expected).abs().max())
        if not error <= torch.finfo(expected.dtype).eps ** 0.5 * float(expected.max()):
            self._vectorized = False
        self.total.zero_()

    def _add(self, examples: Examples) -> float:
        if self._vectorized:
            try:
                return self._many_at_once(examples)
            except Exception:  # whatever vmap cannot do, plain backward passes can, or they raise it again
                self._vectorized = False
        return self._one_by_one(examples)

    def _one_by_one(self, examples: Examples) -> float:
        units = 0.0
        with squaring(self._held, self.total) as squares:
            for number in range(len(examples)):
                head = self._held.head(*examples.slice(number, number + 1))
                for r in self._residuals(head):
                    squares.add(head.z, r, retain=True)
                units += float(head.total)
        return units

    def _many_at_once(self, examples: Examples) -> float:
        assert self._plan is not None
        plan = self._plan
        weights = {name: leaf.detach() for name, leaf in self._held.leaves.items()}
        constants = {name: weights.pop(name) for name in plan.names}
        taps = plan.taps(constants)

        def one(*row: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor]:
            x, y = examples.put([part[None] for part in row])

            def outputs(free: dict[str, Tensor], taps: dict[str, Tensor]) -> tuple[Tensor, tuple[Any, ...]]:
                with Tapping(plan, constants, taps) as tapping:
                    output = self._held.output(x, {**constants, **free})
                head = self._held.head_at(output, y)
                return head.z, (torch.stack(list(self._residuals(head))), head.total, tapping.inputs())

            found: Any = torch.func.vjp(outputs, weights, taps, has_aux=True)
            _, pull, (residuals, count, inputs) = found
            own = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            tapped = {name: torch.zeros_like(tap) for name, tap in taps.items()}
            for k in range(residuals.shape[0]):
                by_weight, by_tap = pull(residuals[k])
                own = {name: own[name] + by_weight[name].square() for name in own}
                tapped = {name: tapped[name] + by_tap[name].square() for name in tapped}
            return own, tapped, inputs, count

        own, tapped, inputs, counts = torch.func.vmap(one)(*examples.rows())
        views = self._held.views(self.total)
        for name, squares in own.items():
            views[name].add_(squares.sum(0))
        plan.add(views, tapped, inputs)
        return float(counts.sum())

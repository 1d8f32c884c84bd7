"""What a perturbation of the weights costs: the loss rises by ½ Σ h E[δ²] (second order, at a trained network)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightbank.distributions.distribution import WeightDistribution, check_over, each_draw, seed_of
from weightbank.errors import DataError, LayoutError
from weightbank.evaluation.estimate import Estimate
from weightbank.layout import Layout
from weightbank.progress import progress
from weightbank.task import Source, Task, as_batches, checked_batches
from weightbank.types import Batches, Draws, Flat, Inputs
from weightbank.undisturbed import undisturbed


def displacement(law: WeightDistribution, *, theta: Flat | None = None) -> Flat:
    """E[(θ' - θ)²] of each weight, shape (P,): variance plus squared bias; θ is the law's own mean if None."""
    variance = law.variance()
    if theta is None:
        return variance
    law.layout.check(theta)
    return variance + (law.mean() - theta).square()


def expected_increase(curvature: Flat, law: WeightDistribution, *, theta: Flat | None = None) -> float:
    """½ Σ hᵢ E[(θ'ᵢ - θᵢ)²]: by how much the mean loss of an example rises under `law`, in units of the loss.

    Args:
        curvature: h, shape (P,), loss per example and squared weight: any function of `weightbank.curvature`.
        law: of the perturbed weights θ': rounding, a chip, shared pages, a posterior, or several `Together`.
        theta: the trained weights θ, shape (P,); the law's mean if None, which leaves out what its bias costs.

    Holds while the loss is quadratic and its gradient at θ is nought; errors of different weights only need to be
    uncorrelated where the Hessian couples them. `measured_increase` says how far that is true. Raises `LayoutError`
    for vectors of another size.
    """
    law.layout.check(curvature)
    return float(0.5 * (curvature.double() @ displacement(law, theta=theta).double()))


def measured_increase(
    task: Task,
    law: WeightDistribution,
    samples: int = 30,
    *,
    theta: Flat | None = None,
    data: Source | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Mean loss at draws of `law` minus the mean loss at θ (the task's weights if None), paired, in evaluation mode.

    data: the task's training data if None, which the curvature was taken of; give test data to see what users will.

    `values` holds one number per draw; BatchNorm keeps its statistics. One forward pass a draw. Raises `LayoutError`
    for a law over other weights, `DataError` for fewer than one draw or no data.
    """
    check_over(law, task)
    source = task.train if data is None else as_batches(data, task.batch_size, shuffle=False)
    base = _loss(task, task.theta() if theta is None else theta, source)
    return over_draws(task, law, samples, generator, lambda draw: _loss(task, draw, source) - base)


@dataclass(frozen=True, eq=False)
class Together:
    """Independent perturbations of the same weights added up: θ' = θ + Σ (θ'_k - θ), such as rounding and then a chip.

    theta: θ, shape (P,), which each of `laws` perturbs on its own.
    """

    theta: Flat
    laws: Sequence[WeightDistribution]

    def __post_init__(self) -> None:
        """Raise `LayoutError` unless all laws are over the same weights, `DataError` if there is none."""
        if not self.laws:
            raise DataError("no laws came; wanted at least one")
        for law in self.laws:
            law.layout.check(self.theta)
            if law.layout.fingerprint != self.layout.fingerprint:
                raise LayoutError("the laws are over different weights: their layouts have other names or shapes")

    @property
    def layout(self) -> Layout:
        """The layout all the laws share."""
        return self.laws[0].layout

    def mean(self) -> Flat:
        """Θ plus all biases, shape (P,)."""
        return self.theta + sum(law.mean() - self.theta for law in self.laws)

    def variance(self) -> Flat:
        """The sum of the variances, shape (P,)."""
        return torch.stack([law.variance() for law in self.laws]).sum(0)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` draws, shape (S, P)."""
        return torch.stack([draw.clone() for draw in self.draws(count, generator=generator)])

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The same draws one at a time, in one reused vector."""
        out = torch.empty_like(self.theta)
        streams = [each_draw(law, count, torch.Generator().manual_seed(seed_of(generator))) for law in self.laws]
        for parts in zip(*streams, strict=True):
            out.copy_(self.theta)
            for part in parts:
                out += part - self.theta
            yield out


def over_draws(
    task: Task,
    law: WeightDistribution,
    samples: int,
    generator: torch.Generator | None,
    value: Callable[[Flat], float],
) -> Estimate:
    """The mean of `value` over draws of `law`; `LayoutError` for a law over other weights, `DataError` for no draw."""
    check_over(law, task)
    if samples < 1:
        raise DataError(f"samples={samples}; wanted at least 1")
    found: list[float] = []
    with progress(f"{task.name}: draws", total=samples) as bar:
        for draw in each_draw(law, samples, generator):
            found.append(value(draw))
            bar.advance()
    return Estimate.of(found)


def over_batches(task: Task, source: Batches, value: Callable[[Inputs, Tensor], float]) -> float:
    """The mean over examples of `value(x, y)`, itself a mean over a batch; one pass that repeats, without gradients."""
    total, examples = 0.0, 0
    with torch.no_grad(), undisturbed(source, device=task.device, seed=0):
        for x, y in checked_batches(source, task.device, f"{task.name}: data"):
            total += value(x, y) * len(y)
            examples += len(y)
    return total / examples


def _loss(task: Task, theta: Flat, source: Batches) -> float:
    """The mean loss of an example over one pass."""
    theta = theta.to(task.device)
    return over_batches(task, source, lambda x, y: float(task.loss(task.predict(theta, x), y)))

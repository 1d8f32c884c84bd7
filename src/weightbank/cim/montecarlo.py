"""Accuracy over noisy chips, fast: a fresh chip for each mini-batch for means, whole test sets for spread and worst.

A mean over chips needs many chips, not many passes: one pass that gives every mini-batch a chip of its own has the
error of the mean of as many chips as there are batches, at the cost of one. Batches are strata: with w_b the share of
examples in batch b and s_b² the variance over its chips, the standard error after n passes is √(Σ w_b² s_b² / n).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from weightbank.distributions.distribution import StreamedDistribution, WeightDistribution, check_over
from weightbank.distributions.point import Point
from weightbank.errors import DataError
from weightbank.evaluation.estimate import Estimate
from weightbank.evaluation.outputs import IGNORED, class_axis, numbers, tensor_of
from weightbank.progress import progress
from weightbank.task import Source, Task, as_batches, checked_batches
from weightbank.types import Flat
from weightbank.undisturbed import undisturbed

LEAST = 2
"""Passes before an early stop: with one there is no variance within a batch."""


@runtime_checkable
class Resting(Protocol):
    """A law whose draws change from one inference to the next."""

    def at_rest(self) -> tuple[WeightDistribution, Flat | None]:
        """The law without that, and the standard deviation (P,) each inference adds, or None."""
        ...


@dataclass(frozen=True)
class Strata:
    """An estimate of a mean over chips whose batches are strata.

    freedom: degrees of freedom of its standard error (Welch-Satterthwaite).
    passes: over the data.
    """

    estimate: Estimate
    freedom: float
    passes: int

    @property
    def negative(self) -> "Strata":
        """The same of minus the quantity."""
        estimate = Estimate(-self.estimate.mean, self.estimate.stderr, self.estimate.n)
        return Strata(estimate, self.freedom, self.passes)


@dataclass(frozen=True)
class Comparison:
    """Several programmings on the same chips: each one's accuracy, and its difference to the first, paired."""

    accuracy: dict[str, Estimate]
    difference: dict[str, Estimate]


class Scorer:
    """The labelled data of a task, read again and again: how many examples of each batch some weights get right.

    For classes the score is the accuracy over positions not labelled -100; for floating targets it is the negative
    `task.loss`. More is better. Costs a forward pass; no copy of the model, nothing kept but the targets.

    Raises `DataError` for empty data, targets that differ between passes, outputs that do not fit.
    """

    def __init__(self, task: Task, data: Source | None = None) -> None:
        self.task = task
        self.source = as_batches(task.test if data is None else data, task.batch_size, shuffle=False)
        self.counts: Float64[Tensor, " B"] = torch.zeros(0, dtype=torch.float64)
        self._targets: list[Tensor] = []
        self._axis = 1

    @property
    def weights(self) -> Float64[Tensor, " B"]:
        """The share of examples in each batch."""
        return self.counts / self.counts.sum()

    def run(self, weights: Callable[[], Flat]) -> Float64[Tensor, " B"]:
        """One pass; `weights()` is asked for before each batch. The mean score of each batch."""
        task, first = self.task, not self._targets
        scores: list[float] = []
        counts: list[int] = []
        with torch.no_grad(), undisturbed(self.source, task.train, device=task.device, seed=0):
            for number, (x, y) in enumerate(checked_batches(self.source, task.device, f"{task.name}: test data")):
                self._same(y, number, first)
                output = task.predict(weights().to(task.device), x)
                score, count = self._score(output, y)
                scores.append(score)
                counts.append(count)
        if first:
            self.counts = torch.tensor(counts, dtype=torch.float64)
            if not bool((self.counts > 0).any()):
                raise DataError(f"{task.name}: all test positions carry the label to ignore")
        elif len(scores) != len(self.counts):
            raise DataError(f"{task.name}: {len(scores)} batches came after {len(self.counts)} in the first pass")
        return torch.tensor(scores, dtype=torch.float64) / self.counts.clamp(min=1)

    def _score(self, output: object, y: Tensor) -> tuple[float, int]:
        logits = tensor_of(output)
        if y.is_floating_point():
            numbers(logits, y)
            return -float(self.task.loss(output, y)) * len(y), len(y)
        axis = class_axis(logits, y)
        if bool(logits.isnan().any()):
            raise DataError(f"{self.task.name}: NaN outputs; look at the weights, or at the device's errors")
        counted = y != IGNORED
        return float(((logits.argmax(axis) == y) & counted).sum()), int(counted.sum())

    def _same(self, y: Tensor, number: int, first: bool) -> None:
        if first:
            self._targets.append(y.clone())
        elif number >= len(self._targets) or not torch.equal(y, self._targets[number]):
            raise DataError(
                f"{self.task.name}: batch {number} has other targets than in the first pass; every chip must see the "
                "same examples in the same order: make the loader with shuffle=False"
            )


def mean_over_chips(
    task: Task,
    law: WeightDistribution,
    *,
    passes: int = 4,
    stderr: float | None = None,
    data: Source | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The mean accuracy over chips of `law` on the test data (`data`), a fresh chip for each mini-batch.

    passes: at most so many over the data, at least two.
    stderr: stop when the standard error over chips is below this.
    generator: None is a fresh one with seed 0; equally seeded ones give the same chips.

    `n` of the result counts chips. The interval is over chips: the examples are taken as given. Raises `DataError` and
    `LayoutError` as `Scorer`, and for fewer than two passes.
    """
    stream = Passes(Scorer(task, data), law, generator)
    _check(passes, stderr)
    with progress(f"{task.name}: passes", total=passes) as bar:
        while len(stream.rows) < passes:
            stream.add()
            bar.advance()
            if len(stream.rows) >= LEAST and stderr is not None and (stream.strata().estimate.stderr or 0.0) < stderr:
                break
    return stream.strata().estimate


def each_chip(
    task: Task,
    law: WeightDistribution,
    chips: int,
    *,
    stderr: float | None = None,
    data: Source | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The accuracy of each of `chips` whole chips: `values`, `.min`, `.quantile(0.05)` and the mean.

    stderr: stop after five or more chips when the standard error of their mean is below this. Read noise, if the device
    has any, is new for each mini-batch of a chip.
    """
    scorer = Scorer(task, data)
    _check(max(chips, LEAST), stderr)
    resting, noise = law.at_rest() if isinstance(law, Resting) else (law, None)
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    readings = torch.Generator().manual_seed(generator.initial_seed() + 1)
    values: list[float] = []
    with progress(f"{task.name}: chips", total=chips) as bar:
        for theta in _stream(resting, chips, generator):
            mean = scorer.run(_read(theta, noise, readings))
            values.append(float((mean * scorer.weights).sum()))
            bar.advance()
            found = Estimate.of(values)
            if stderr is not None and len(values) >= 5 and found.stderr is not None and found.stderr < stderr:
                break
    return Estimate.of(values)


def compare(
    task: Task,
    laws: Mapping[str, WeightDistribution],
    *,
    passes: int = 4,
    stderr: float | None = None,
    data: Source | None = None,
    seed: int = 0,
) -> Comparison:
    """Several laws on common random numbers, a fresh chip for each mini-batch: accuracies, and paired differences.

    stderr: stop when all differences to the first law (the accuracies, if there is only one) are known so well.
    """
    _check(passes, stderr)
    if not laws:
        raise DataError("no laws to compare; pass a mapping from names to laws")
    scorer = Scorer(task, data)
    streams = {name: Passes(scorer, law, torch.Generator().manual_seed(seed)) for name, law in laws.items()}
    base = next(iter(streams.values()))
    for number in range(passes):
        for stream in streams.values():
            stream.add()
        others = list(streams.values())[1:] or [base]
        errors = [s.strata(None if s is base else base).estimate.stderr or 0.0 for s in others] if number else []
        if errors and stderr is not None and max(errors) < stderr:
            break
    return Comparison(
        {name: stream.strata().estimate for name, stream in streams.items()},
        {name: stream.strata(base).estimate for name, stream in streams.items()},
    )


class Passes:
    """Passes of one law, a fresh chip for each mini-batch."""

    def __init__(self, scorer: Scorer, law: WeightDistribution, generator: torch.Generator | None) -> None:
        check_over(law, scorer.task)
        self.scorer = scorer
        self._chips = _stream(law, 2**62, generator if generator is not None else torch.Generator().manual_seed(0))
        self.rows: list[Float64[Tensor, " B"]] = []

    def add(self) -> None:
        """One more pass over the data."""
        self.rows.append(self.scorer.run(lambda: next(self._chips)))

    def strata(self, less: "Passes | Float64[Tensor, ' B'] | None" = None) -> Strata:
        """The mean over chips, or of the difference to another law's same chips, or to fixed scores (B,)."""
        rows = torch.stack(self.rows)
        if isinstance(less, Passes):
            rows = rows - torch.stack(less.rows)
        elif less is not None:
            rows = rows - less
        weights, passes = self.scorer.weights, len(rows)
        mean = float((rows.mean(0) * weights).sum())
        chips = passes * len(weights)
        if passes < LEAST:
            return Strata(Estimate(mean, None, chips), 0.0, passes)
        parts = weights.square() * rows.var(0) / passes
        total = float(parts.sum())
        squares = float(parts.square().sum()) / (passes - 1)
        return Strata(Estimate(mean, math.sqrt(total), chips), total**2 / squares if squares else math.inf, passes)


def student(p: float, freedom: float) -> float:
    """The p-quantile of Student's t, by the Cornish-Fisher series in 1 / freedom; within 1 % from 4 degrees on."""
    z = NormalDist().inv_cdf(p)
    if math.isinf(freedom):
        return z
    v = max(freedom, 1.0)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def _read(theta: Flat, noise: Flat | None, generator: torch.Generator) -> Callable[[], Flat]:
    if noise is None:
        return lambda: theta
    return lambda: torch.addcmul(theta, noise, torch.randn(len(theta), generator=generator, dtype=theta.dtype))


def _stream(law: WeightDistribution, count: int, generator: torch.Generator) -> Iterator[Flat]:
    if isinstance(law, Point):
        return repeat(law.theta, count)
    if isinstance(law, StreamedDistribution):
        return law.draws(count, generator=generator)
    groups = (law.sample(min(16, count - start), generator=generator) for start in range(0, count, 16))
    return chain.from_iterable(group.unbind(0) for group in groups)


def _check(passes: int, stderr: float | None) -> None:
    if passes < LEAST or (stderr is not None and not stderr > 0):
        raise DataError(
            f"passes={passes}, stderr={stderr}; wanted at least {LEAST} passes, and stderr positive or None"
        )

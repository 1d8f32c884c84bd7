"""The search for the smallest budget whose accuracy holds: sequential tests, common chips, few trials."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Float64
from torch import Generator, Tensor

from weightbank.cim.montecarlo import Passes, Scorer, Strata, student
from weightbank.cim.plan import Trial
from weightbank.cim.policies import Programming, Spend
from weightbank.cim.written import Written
from weightbank.evaluation.estimate import Estimate
from weightbank.types import Flat

NEAR = 0.1
"""A budget is small enough when one smaller by this share of it is known to fail."""


@dataclass
class Search:
    """Trials of budgets 0, step, 2 step, ... 1.

    spend: what a budget buys.
    scorer: the data.
    theta: the clean weights.
    curvature: for predictions; None if only an order of the weights is known.
    tell: called after each new trial, e.g. to save it.
    """

    spend: Spend
    scorer: Scorer
    theta: Flat
    curvature: Flat | None
    max_drop: float
    step: float
    confidence: float
    passes: int
    seed: int
    history: list[Trial] = field(default_factory=list)
    tell: Callable[[], None] = lambda: None

    @property
    def last(self) -> int:
        """The number of the largest budget."""
        return math.ceil(1 / self.step - 1e-9)

    def smallest(self) -> int:
        """The number of the smallest budget found to hold; the last one if none does."""
        low, high = -1, self.last
        number, tried = self._first(), []
        while True:
            trial = self.trial(number)
            tried.append((number, trial.drop.mean))
            low, high = (low, number) if trial.passed else (number, high)
            if low >= self.last or high - low <= max(1, NEAR * high):
                return high
            number = self._next(low, high, tried)

    def confirmed(self, number: int) -> tuple[int, Trial]:
        """The first budget from `number` on that also holds on fresh chips, or the last one, and its trial."""
        while True:
            trial = self.trial(number, fresh=True)
            if trial.passed or number >= self.last:
                return number, trial
            number = min(self.last, max(number + 1, math.ceil(number * (1 + NEAR))))

    def measured(self, number: int, passes: int) -> Estimate:
        """The drop of budget `number` on chips that no decision has looked at."""
        chips = Passes(self.scorer, self.programming(number).law, Generator().manual_seed(self.seed + 2**40 + number))
        for _ in range(passes):
            chips.add()
        return chips.strata(self.clean).negative.estimate

    def programming(self, number: int) -> Programming:
        """What budget `number` buys."""
        return self.spend(self.budget(number))

    def budget(self, number: int) -> float:
        """The budget of a number."""
        return min(1.0, number * self.step)

    def trial(self, number: int, *, fresh: bool = False) -> Trial:
        """Decide one budget, or look up how it was decided before."""
        budget = self.budget(number)
        for trial in self.history:
            if trial.budget == budget and trial.fresh == fresh:
                return trial
        found = self.programming(number)
        # Fresh chips are others for every budget; those of the search are common to all.
        seed = self.seed + (1 + number if fresh else 0)
        strata, passed = self._decide(found, Generator().manual_seed(seed), least=4 if fresh else 2)
        trial = Trial(budget, found.fraction, found.write_cycles, strata.estimate, strata.passes, passed, fresh)
        self.history.append(trial)
        self.tell()
        return trial

    @cached_property
    def clean(self) -> Float64[Tensor, " B"]:
        """The clean score of each batch."""
        return self.scorer.run(lambda: self.theta)

    @cached_property
    def clean_mean(self) -> float:
        """The clean score of the data."""
        return float((self.clean * self.scorer.weights).sum())

    def _decide(self, found: Programming, generator: Generator, least: int) -> tuple[Strata, bool]:
        """Pass after pass, with looks after 2, 4, 8, ...: is the mean drop within the target, beyond it, or open?"""
        clean = self.clean
        least = min(least, self.passes)
        looks = [least]
        while looks[-1] * 2 <= self.passes:
            looks.append(looks[-1] * 2)
        passes = Passes(self.scorer, found.law, generator)
        for look in looks:
            while len(passes.rows) < look:
                passes.add()
            strata = passes.strata(clean).negative
            stderr = strata.estimate.stderr or 0.0
            width = student(1 - (1 - self.confidence) / len(looks), strata.freedom) * stderr
            if strata.estimate.mean + width <= self.max_drop:
                return strata, True
            if strata.estimate.mean - width > self.max_drop:
                break
        return strata, False

    @cached_property
    def _risks(self) -> list[tuple[int, float]]:
        """The predicted increase ½ Σ h var of the loss at some budgets, falling; empty without a curvature."""
        if self.curvature is None:
            return []
        numbers = sorted({0, self.last, *(min(self.last, 2**power) for power in range(self.last.bit_length()))})
        risks: list[tuple[int, float]] = []
        for number in numbers:
            law = self.programming(number).law
            if isinstance(law, Written) and law.absorb is not None:
                return []
            risk = 0.5 * float((self.curvature.double() * law.variance().double()).sum())
            risks.append((number, max(risk, 1e-30)))
        return risks

    def _risk(self, number: int) -> float:
        """The prediction between those computed, on a logarithmic scale."""
        for (a, risk_a), (b, risk_b) in zip(self._risks, self._risks[1:], strict=False):
            if a <= number <= b:
                return math.exp(math.log(risk_a) + math.log(risk_b / risk_a) * (number - a) / (b - a))
        return self._risks[-1][1]

    def _reaching(self, risk: float) -> int:
        """The smallest budget whose predicted increase is at most `risk`."""
        low, high = 0, self.last
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._risk(middle) <= risk else (middle + 1, high)
        return low

    def _first(self) -> int:
        """Where the predicted loss exceeds that of the largest budget by the target; a tenth without a prediction."""
        if not self._risks:
            return max(1, self.last // 10)
        return self._reaching(self._risks[-1][1] + self.max_drop)

    def _next(self, low: int, high: int, tried: list[tuple[int, float]]) -> int:
        """A budget between one that failed and one that held: where the drop should reach the target, or the middle.

        The drop is taken for a power of the predicted increase of the loss, through the two trials nearest the target;
        every third time it is the middle, so that a bad prediction costs little.
        """
        number = round(math.sqrt((low + 1) * high)) if low > 0 else high // 4
        if self._risks and len(tried) % 3:
            target = math.log(self.max_drop)
            points = [(math.log(self._risk(budget)), math.log(max(drop, 1e-6))) for budget, drop in tried]
            (risk, drop), *others = sorted(points, key=lambda point: abs(point[1] - target))
            slope = 1.0
            if others and abs(risk - others[0][0]) > 1e-9:
                slope = min(3.0, max(0.3, (drop - others[0][1]) / (risk - others[0][0])))
            number = self._reaching(math.exp(risk + (target + math.log(0.85) - drop) / slope))
        # Nearer to an end than the precision wanted, a trial would decide little.
        number = min(math.ceil(high * (1 - NEAR)), max(math.floor(low / (1 - NEAR)), number))
        return min(high - 1, max(low + 1, number))

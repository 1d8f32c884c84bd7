"""What is kept of each draw while draws stream by: its metrics, and sums for the averaged prediction."""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from weightbank.evaluation.detection import auroc, fpr95
from weightbank.evaluation.estimate import Estimate
from weightbank.evaluation.evaluation import Evaluation
from weightbank.evaluation.metrics import (
    LOG_SMALLEST,
    accuracy,
    brier,
    entropy,
    expected_calibration_error,
    nll,
)
from weightbank.evaluation.running import RunningPrediction
from weightbank.evaluation.temperature import calibrated_nll


class ClassTally:
    """Class probabilities: p(y|x) = 1/S Σ_s p(y|x, θ_s), its variance, entropy and mutual information."""

    watched = "accuracy"

    def __init__(self, labels: Int64[Tensor, " N"], bins: int) -> None:
        self.draws: dict[str, list[float]] = {}
        self._labels, self._bins = labels, bins
        self._known, self._foreign = _Ensemble(), _Ensemble()

    def add(self, log_p: Float64[Tensor, "N C"], foreign: Float64[Tensor, "M C"] | None) -> None:
        """Score one draw and count it; both arrays are overwritten."""
        found = class_scores(log_p, self._labels, self._bins)
        spread = self._known.add(log_p)
        if foreign is not None:
            strange = self._foreign.add(foreign)
            found |= {"auroc": auroc(spread, strange), "fpr95": fpr95(spread, strange)}
        for name, score in found.items():
            self.draws.setdefault(name, []).append(score.mean)

    def evaluation(self, name: str) -> Evaluation:
        """Everything the draws so far amount to."""
        known, foreign = self._known, self._foreign
        average = class_scores(known.running.mean.log().clamp_(min=LOG_SMALLEST), self._labels, self._bins)
        if foreign.running.count:
            pairs = {"": (known.entropy, foreign.entropy), "_confidence": (known.doubt, foreign.doubt)}
            if known.running.count > 1:
                pairs["_mutual_information"] = (known.mutual_information, foreign.mutual_information)
            for ending, pair in pairs.items():
                average |= {"auroc" + ending: auroc(*pair), "fpr95" + ending: fpr95(*pair)}
        return Evaluation(
            name=name,
            kind="classification",
            samples=known.running.count,
            draws={metric: Estimate.of(values) for metric, values in self.draws.items()},
            average=average,
            prediction=known.running.mean,
            variance=known.running.variance,
            targets=self._labels,
            entropy=known.entropy,
            mutual_information=known.mutual_information,
            foreign_entropy=foreign.entropy if foreign.running.count else None,
            foreign_mutual_information=foreign.mutual_information if foreign.running.count else None,
        )


class NumberTally:
    """Regression: the mean prediction over draws and its variance."""

    watched = "loss"

    def __init__(self, targets: Float64[Tensor, "N *D"]) -> None:
        self.draws: dict[str, list[float]] = {"loss": [], "rmse": []}
        self._targets = targets
        self._running = RunningPrediction()

    def add(self, prediction: Float64[Tensor, "N *D"], loss: float) -> None:
        """Score one draw and count it."""
        self.draws["loss"].append(loss)
        self.draws["rmse"].append(rmse(prediction, self._targets).mean)
        self._running.add(prediction)

    def evaluation(self, name: str) -> Evaluation:
        """Everything the draws so far amount to."""
        variance = self._running.variance
        return Evaluation(
            name=name,
            kind="regression",
            samples=self._running.count,
            draws={metric: Estimate.of(values) for metric, values in self.draws.items()},
            average={
                "rmse": rmse(self._running.mean, self._targets),
                "variance": Estimate.over(variance.reshape(len(variance), -1).mean(-1)),
            },
            prediction=self._running.mean,
            variance=variance,
            targets=self._targets,
        )


def class_scores(log_p: Float[Tensor, "N C"], labels: Int64[Tensor, " N"], bins: int) -> dict[str, Estimate]:
    """Every metric of labelled class probabilities by name; those of temperature need two examples."""
    scores = {"accuracy": accuracy(log_p, labels), "nll": nll(log_p, labels)}
    if len(labels) > 1:
        scores["calibrated_nll"], scores["temperature"] = calibrated_nll(log_p, labels)
    scores["brier"] = brier(log_p, labels)
    scores["ece"] = expected_calibration_error(log_p, labels, bins=bins)
    return scores


def rmse(prediction: Float[Tensor, "N *D"], targets: Float[Tensor, "N *D"]) -> Estimate:
    """√ of the mean squared error over examples and outputs; its standard error is that of the mean over 2 RMSE."""
    squared = Estimate.over((prediction - targets).square().reshape(len(targets), -1).mean(-1))
    root = math.sqrt(squared.mean)
    stderr = None if squared.stderr is None else squared.stderr / (2 * root) if root else 0.0
    return Estimate(root, stderr, squared.n)


class _Ensemble:
    """Averages over draws of the class probabilities of one data set."""

    def __init__(self) -> None:
        self.running = RunningPrediction()
        self._entropies = torch.zeros(())

    def add(self, log_p: Float64[Tensor, "N C"]) -> Float64[Tensor, " N"]:
        """Turn log-probabilities into probabilities in place, count them, and return this draw's entropies."""
        p = log_p.exp_()
        self.running.add(p)
        spread = entropy(p)
        self._entropies = self._entropies + spread
        return spread

    @property
    def entropy(self) -> Float64[Tensor, " N"]:
        """H of the mean probabilities: all uncertainty."""
        return entropy(self.running.mean)

    @property
    def mutual_information(self) -> Float64[Tensor, " N"]:
        """H of the mean minus the mean of H: what the draws disagree about."""
        return (self.entropy - self._entropies / self.running.count).clamp_(min=0)

    @property
    def doubt(self) -> Float64[Tensor, " N"]:
        """1 minus the largest mean probability."""
        return 1 - self.running.mean.amax(-1)

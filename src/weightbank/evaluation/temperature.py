"""The NLL that is left after one scalar temperature has been fitted on other examples.

Raw NLL mostly ranks models by their over-confidence, which one number can repair, so ensembles are to be compared at
their best temperature (Ashukha et al. 2020, arXiv 2002.06470).
"""

import math

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from weightbank.evaluation.estimate import Estimate
from weightbank.evaluation.metrics import BLOCK, LOG_SMALLEST

COLDEST, HOTTEST = 0.01, 100.0


def calibrated_nll(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> tuple[Estimate, Estimate]:
    """The cross-fitted temperature-scaled NLL in nats, and the temperature T.

    The examples are halved by a fixed random permutation; each half is scored at the temperature fitted on the other,
    so that no label judges its own fit. NLL is over all N examples; T is the mean of the two fits with half their
    difference as standard error. T > 1: the predictions were too confident.

    Raises `ValueError` for fewer than two examples.
    """
    n = len(labels)
    if n < 2:
        raise ValueError(f"{n} examples came; fitting on one half and scoring the other needs at least 2")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(labels.device)
    first, second = (half.sort().values for half in (order[: n // 2], order[n // 2 :]))
    scored: list[Tensor] = []
    fitted: list[float] = []
    for fit, score in ((first, second), (second, first)):
        temperature = fit_temperature(log_p[fit], labels[fit])
        fitted.append(temperature)
        for chosen in torch.split(score, BLOCK):
            energy = _energies(log_p[chosen]) / temperature
            scored.append(energy.exp().sum(-1).log() - energy.gather(-1, labels[chosen].long()[:, None])[:, 0])
    return Estimate.over(torch.cat(scored)), Estimate.of(fitted)


def fit_temperature(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """The T in [0.01, 100] that minimises the mean NLL of softmax(log p / T).

    In β = 1/T the mean NLL is convex, with slope E_β[log p] - log p(label) and curvature Var_β[log p] averaged over
    examples; the slope's root is found by Newton steps kept inside a shrinking bracket, until one is below 1e-6 β.
    At an end of the range (every example right, or the labels unrelated to p) that end is returned.
    """
    energy, label = _energies(log_p), labels.long()[:, None]
    low, high = 1 / HOTTEST, 1 / COLDEST
    if _slope(energy, label, high)[0] <= 0:
        return COLDEST
    if _slope(energy, label, low)[0] >= 0:
        return HOTTEST
    beta = 1.0
    for _ in range(100):
        slope, curvature = _slope(energy, label, beta)
        if slope > 0:
            high = beta
        else:
            low = beta
        step = beta - slope / curvature if curvature > 0 else math.inf
        last, beta = beta, step if low < step < high else math.sqrt(low * high)
        if abs(beta - last) <= 1e-6 * last:
            break
    return 1 / beta


def _energies(log_p: Float[Tensor, "N C"]) -> Float64[Tensor, "N C"]:
    """Floored log-probabilities less the largest of their row, so that no power of them overflows."""
    energy = log_p.double().clamp(min=LOG_SMALLEST)
    return energy.sub_(energy.amax(-1, keepdim=True))


def _slope(energy: Float64[Tensor, "N C"], labels: Int64[Tensor, "N 1"], beta: float) -> tuple[float, float]:
    """First and second derivative of the mean NLL with respect to β."""
    slope = curvature = 0.0
    ones = energy.new_ones(energy.shape[1])
    for block, label in zip(torch.split(energy, BLOCK), torch.split(labels, BLOCK), strict=True):
        weight = (beta * block).exp_()
        total = weight @ ones
        mean = weight.mul_(block) @ ones / total
        square = weight.mul_(block) @ ones / total
        slope += float((mean - block.gather(-1, label)[:, 0]).sum())
        curvature += float((square - mean**2).sum())
    return slope / len(labels), curvature / len(labels)

"""How good class probabilities are: accuracy, negative log-likelihood, Brier score and calibration error.

Every function takes log-probabilities (N, C) with integer labels (N,) and returns a mean over the N examples with its
standard error, which treats examples as independent. A probability below the smallest positive double 4.9e-324 counts
as that number, so no log-likelihood is infinite: an NLL is at most 744.44 nats per example.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightbank.evaluation.estimate import Estimate

LOG_SMALLEST = math.log(5e-324)
"""The logarithm of the smallest positive double, -744.44; the floor of every log-probability."""

BLOCK = 65_536
"""Examples per block where a temporary of (examples, C) numbers is needed."""


def accuracy(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Estimate:
    """The fraction a of examples whose most probable class is the label; stderr = √(a (1 - a) / N)."""
    n = len(labels)
    mean = float((log_p.argmax(-1) == labels).double().mean())
    return Estimate(mean, math.sqrt(mean * (1 - mean) / n), n)


def nll(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Estimate:
    """The mean of -log p(label), in nats."""
    return Estimate.over(-label_log_probability(log_p, labels))


def label_log_probability(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The log p(label) of each example, at least `LOG_SMALLEST`."""
    return log_p.gather(-1, labels.long()[:, None])[:, 0].double().clamp(min=LOG_SMALLEST)


def brier(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Estimate:
    """The multiclass Brier score Σ_c (p_c - [c = label])², between 0 and 2 (Brier 1950)."""
    score = []
    for block, label in zip(torch.split(log_p, BLOCK), torch.split(labels.long(), BLOCK), strict=True):
        p = block.double().exp()
        score.append(torch.linalg.vecdot(p, p) - 2 * p.gather(-1, label[:, None])[:, 0] + 1)
    return Estimate.over(torch.cat(score))


def expected_calibration_error(log_p: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, bins: int = 15) -> Estimate:
    """ECE = Σ_b (n_b / N) |accuracy_b - confidence_b| over equal-width bins of the top class's probability.

    The bins of Guo et al. 2017 (arXiv 1706.04599), [b/B, (b+1)/B), the last with 1 itself. The standard error is that
    of the mean of sign_b · (correct - confidence), which is the ECE written as a mean over examples, with the sign of
    each bin's gap held fixed (delta method). It says nothing of the upward bias that ECE has for few examples per bin.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    log_confidence, top = log_p.max(-1)
    # Just below one: torchmetrics gives a probability of exactly one a bin of its own, and takes anything above one
    # (a rounding error of a sum) for a sign that these are logits.
    confidence = log_confidence.double().exp().clamp(max=1 - 2.0**-53)
    correct = top == labels
    error = binary_calibration_error(confidence, correct.long(), n_bins=bins, norm="l1", validate_args=False)

    gap = correct.double() - confidence
    edges = torch.linspace(0, 1, bins + 1, dtype=gap.dtype, device=gap.device)
    index = torch.bucketize(confidence, edges, right=True) - 1
    sign = torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add_(0, index, gap).sign()
    return Estimate(float(error), Estimate.over(sign[index] * gap).stderr, len(labels))


def entropy(p: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """The entropy -Σ_c p_c log p_c of each row, in nats; 0 log 0 = 0."""
    return torch.cat([torch.special.entr(block).sum(-1) for block in torch.split(p, BLOCK)])

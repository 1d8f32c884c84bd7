"""How well an uncertainty score tells a foreign data set from the known one: AUROC and FPR95.

Foreign examples are the positives, and a higher score says "more foreign".
"""

import math
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightbank.evaluation.estimate import Estimate


def auroc(known: Float[Tensor, " N"], foreign: Float[Tensor, " M"]) -> Estimate:
    """The probability that a foreign example scores above a known one, ties counting half.

    The standard error is DeLong's (DeLong et al. 1988): with v_i the fraction of the other set that example i is
    ordered correctly against, √(var(v over foreign) / M + var(v over known) / N); None if a set has fewer than two.
    """
    from torchmetrics.functional.classification import binary_auroc

    value = float(binary_auroc(*_ranked(known, foreign), validate_args=False))
    n, m = len(known), len(foreign)
    if min(n, m) < 2:
        return Estimate(value, None, n + m)
    spread = _placement(foreign, known).var() / m + _placement(known, foreign).var() / n
    return Estimate(value, math.sqrt(float(spread)), n + m)


def fpr95(known: Float[Tensor, " N"], foreign: Float[Tensor, " M"]) -> Estimate:
    """The fraction f of known examples flagged as foreign at the threshold that flags at least 95 % of the foreign.

    (Some papers, ODIN among them, call the known examples positive instead; their number is another one.)
    The standard error joins √(f (1 - f) / N) with the spread of f as the threshold's place among the M sorted foreign
    scores varies binomially, in its normal approximation.
    """
    from torchmetrics.functional.classification import binary_specificity_at_sensitivity

    specificity, _ = binary_specificity_at_sensitivity(*_ranked(known, foreign), 0.95, validate_args=False)
    n, m = len(known), len(foreign)
    value = round((1 - float(specificity)) * n) / n  # a count over n, computed in float32 there
    z = torch.tensor([NormalDist().inv_cdf((i + 0.5) / 99) for i in range(99)], dtype=torch.float64)
    place = (0.05 * m + z * math.sqrt(0.05 * 0.95 * m)).floor().clamp(0, m - 1).long().to(foreign.device)
    flagged = 1 - torch.searchsorted(known.sort().values, foreign.sort().values[place]).double() / n
    return Estimate(value, math.sqrt(float(flagged.var()) + value * (1 - value) / n), n + m)


def _ranked(known: Float[Tensor, " N"], foreign: Float[Tensor, " M"]) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Scores replaced by their rank in [0, 1], which keeps ties and order, with 1 for foreign.

    torchmetrics puts scores outside [0, 1] through a sigmoid, where large ones would become equal.
    """
    unique, rank = torch.unique(torch.cat([known, foreign]), return_inverse=True)
    positive = torch.cat([torch.zeros_like(known), torch.ones_like(foreign)]).long()
    return rank.double() / max(1, len(unique) - 1), positive


def _placement(scores: Float[Tensor, " A"], others: Float[Tensor, " B"]) -> Float[Tensor, " A"]:
    """For each score the fraction of `others` below it, ties counting half."""
    others = others.sort().values
    scores = scores.to(others.dtype).contiguous()
    below = torch.searchsorted(others, scores) + torch.searchsorted(others, scores, right=True)
    return below.double() / (2 * len(others))

"""Mean and variance over draws of one prediction per example, updated in place, draw by draw (Welford 1962)."""

import torch
from jaxtyping import Float64
from torch import Tensor

from weightbank.evaluation.metrics import BLOCK


class RunningPrediction:
    """Two float64 arrays of the prediction's shape (N, ...), whatever the number of draws.

    Welford's update keeps the variance accurate where it is far smaller than the squared mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Float64[Tensor, "N *D"] = torch.empty(0, dtype=torch.float64)
        self._squares: Float64[Tensor, "N *D"] = torch.empty(0, dtype=torch.float64)

    def add(self, prediction: Float64[Tensor, "N *D"]) -> None:
        """Count one draw's prediction; reads it once, temporaries of `BLOCK` rows."""
        self.count += 1
        if self.count == 1:
            self.mean = prediction.clone()
            self._squares = torch.zeros_like(prediction)
            return
        parts = (torch.split(array, BLOCK) for array in (prediction, self.mean, self._squares))
        for new, mean, squares in zip(*parts, strict=True):
            gap = new - mean
            mean.add_(gap, alpha=1 / self.count)
            squares.addcmul_(gap, new - mean)

    @property
    def variance(self) -> Float64[Tensor, "N *D"]:
        """The unbiased variance over draws (S - 1 in the denominator); zero for a single draw."""
        return self._squares / max(1, self.count - 1)

"""The result of an evaluation: metrics per draw, metrics of the averaged prediction, and that prediction."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float64, Shaped
from torch import Tensor

from weightbank.errors import DataError
from weightbank.evaluation.estimate import Estimate


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a task's predictions are worth under a law over its weights; `print` it for a table.

    Attributes:
        name: the task's.
        kind: "classification" or "regression".
        samples: S, the draws used.
        draws: metric to its mean over single draws ± standard error over them (n = S), all `values` kept.
        average: metric of the prediction averaged over draws, ± standard error over examples.
        prediction: the averaged prediction: class probabilities (N, C), or numbers (N, ...).
        variance: of the prediction over draws, the same shape; unbiased, zero for a single draw.
        targets: class indices (N,) or numbers (N, ...), in the order read; ignored positions left out.
        entropy: of the averaged class probabilities, (N,), in nats.
        mutual_information: entropy minus the mean entropy of single draws, (N,), in nats.
        foreign_entropy: the same for the M foreign inputs, if there were any.
        foreign_mutual_information: likewise.
    """

    name: str
    kind: Literal["classification", "regression"]
    samples: int
    draws: dict[str, Estimate]
    average: dict[str, Estimate]
    prediction: Float64[Tensor, "N *D"] = field(repr=False)
    variance: Float64[Tensor, "N *D"] = field(repr=False)
    targets: Shaped[Tensor, "N ..."] = field(repr=False)
    entropy: Float64[Tensor, " N"] | None = field(default=None, repr=False)
    mutual_information: Float64[Tensor, " N"] | None = field(default=None, repr=False)
    foreign_entropy: Float64[Tensor, " M"] | None = field(default=None, repr=False)
    foreign_mutual_information: Float64[Tensor, " M"] | None = field(default=None, repr=False)

    @property
    def probabilities(self) -> Float64[Tensor, "N C"]:
        """The averaged class probabilities; `DataError` for a regression."""
        if self.kind == "regression":
            raise DataError(f"'{self.name}' is a regression: it has .prediction and .variance, no probabilities")
        return self.prediction

    @property
    def accuracy(self) -> Estimate:
        """Of the averaged prediction."""
        return self["accuracy"]

    @property
    def nll(self) -> Estimate:
        """Of the averaged prediction, in nats."""
        return self["nll"]

    @property
    def brier(self) -> Estimate:
        """Of the averaged prediction."""
        return self["brier"]

    @property
    def ece(self) -> Estimate:
        """Of the averaged prediction."""
        return self["ece"]

    @property
    def rmse(self) -> Estimate:
        """Of the averaged prediction, in units of the targets."""
        return self["rmse"]

    def __getitem__(self, metric: str) -> Estimate:
        """A metric of the averaged prediction by name; `DataError` names those there are."""
        if metric not in self.average:
            raise DataError(f"'{self.name}' is a {self.kind} without '{metric}'; there are: {', '.join(self.average)}")
        return self.average[metric]

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers for JSON, without the arrays."""
        return {
            "name": self.name,
            "kind": self.kind,
            "samples": self.samples,
            "examples": len(self.targets),
            "draws": {metric: estimate.to_dict() for metric, estimate in self.draws.items()},
            "average": {metric: estimate.to_dict() for metric, estimate in self.average.items()},
        }

    def __str__(self) -> str:
        several = self.samples > 1
        header = ["", f"average of {self.samples} draws", "one draw"] if several else ["", "one draw"]
        rows = [header]
        for metric in dict.fromkeys([*self.average, *self.draws]):
            row = [metric.replace("_", " ")]
            for column in (self.average, self.draws)[: len(header) - 1]:
                row.append(column[metric].text if metric in column else "")
            if any(row[1:]):
                rows.append(row)
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        title = f"{self.name}: {len(self.targets):,} examples, ± one standard error"
        if several:
            title += " (average: over examples; one draw: over draws)"
        return "\n".join([title, *(line.rstrip() for line in lines)])

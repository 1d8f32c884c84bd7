"""What a task's predictions are worth when its weights follow a law."""

from weightbank.evaluation.detection import auroc, fpr95
from weightbank.evaluation.estimate import Estimate
from weightbank.evaluation.evaluation import Evaluation
from weightbank.evaluation.metrics import accuracy, brier, entropy, expected_calibration_error, nll
from weightbank.evaluation.montecarlo import evaluate
from weightbank.evaluation.temperature import calibrated_nll, fit_temperature

__all__ = [
    "Estimate",
    "Evaluation",
    "accuracy",
    "auroc",
    "brier",
    "calibrated_nll",
    "entropy",
    "evaluate",
    "expected_calibration_error",
    "fit_temperature",
    "fpr95",
    "nll",
]

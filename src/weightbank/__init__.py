"""Fit more neural networks into less, and less perfect, memory, and know what it costs."""

from weightbank.distributions import (
    Gaussian,
    Mixture,
    Moments,
    Point,
    Sketch,
    Snapshots,
    WeightDistribution,
    Window,
    multi,
)
from weightbank.errors import WeightbankError
from weightbank.evaluation import Estimate, Evaluation, evaluate
from weightbank.formats import BlockFloatingPoint, Format, Native, Packed
from weightbank.layout import Layout, everything, trainable, within
from weightbank.store import RowLog
from weightbank.task import Task, TensorBatches
from weightbank.training import epochs

__version__ = "0.1.0"

__all__ = [
    "BlockFloatingPoint",
    "Estimate",
    "Evaluation",
    "Format",
    "Gaussian",
    "Layout",
    "Mixture",
    "Moments",
    "Native",
    "Packed",
    "Point",
    "RowLog",
    "Sketch",
    "Snapshots",
    "Task",
    "TensorBatches",
    "WeightDistribution",
    "WeightbankError",
    "Window",
    "epochs",
    "evaluate",
    "everything",
    "multi",
    "trainable",
    "within",
]

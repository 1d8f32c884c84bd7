"""Training in low precision, and averages that recover what it loses (SWALP, Yang et al., ICML 2019, arXiv 1904.11943).

Averages in full precision are `Moments(layout, variance=False)`; those here are for less memory, or exact.
"""

from weightbank.lowprecision.attach import Attached
from weightbank.lowprecision.average import ExactAverage, RoundedAverage
from weightbank.lowprecision.by_example import ByExample, pack_by_example
from weightbank.lowprecision.coverage import Coverage, Result
from weightbank.lowprecision.precision import FIRST, LAST, Precision, Rule, exempt, override
from weightbank.lowprecision.schedule import constant_schedule, published_schedule

__all__ = [
    "FIRST",
    "LAST",
    "Attached",
    "ByExample",
    "Coverage",
    "ExactAverage",
    "Precision",
    "Result",
    "RoundedAverage",
    "Rule",
    "constant_schedule",
    "exempt",
    "override",
    "pack_by_example",
    "published_schedule",
]

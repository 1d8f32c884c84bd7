"""Where to spend: what a perturbation of the weights costs, and one budget over all ways to pay for less of it."""

from weightbank.budget.allocation import Allocation, Options, allocate
from weightbank.budget.along import increase_along
from weightbank.budget.increase import Together, displacement, expected_increase, measured_increase
from weightbank.budget.precision import format_options, mixed_precision, row_format_options

__all__ = [
    "Allocation",
    "Options",
    "Together",
    "allocate",
    "displacement",
    "expected_increase",
    "format_options",
    "increase_along",
    "measured_increase",
    "mixed_precision",
    "row_format_options",
]

"""Noisy devices and selective write-verify: which cells deserve the expensive, exact write (after arXiv 2202.08395)."""

from weightbank.cim.baselines import first_derivative, noise_injection
from weightbank.cim.cells import Cells
from weightbank.cim.device import Device
from weightbank.cim.insitu import Retrained, Retraining, retrain_in_situ
from weightbank.cim.ledger import Effort, Ledger
from weightbank.cim.montecarlo import Comparison, compare, each_chip, mean_over_chips
from weightbank.cim.plan import Plan, Trial
from weightbank.cim.policies import (
    MENU,
    Programming,
    by_cell,
    by_significance,
    by_weight,
    compensate,
    graded,
    read_first,
)
from weightbank.cim.process import Outcome, WriteVerify
from weightbank.cim.program import Chip, program
from weightbank.cim.rank import benefit, rank, rank_cells, select, select_cells
from weightbank.cim.rule import Rule
from weightbank.cim.statistics import FITS, Drift, Fit, Table
from weightbank.cim.sweep import Sweep, sweep
from weightbank.cim.write_verify import write_verify
from weightbank.cim.written import Written

__all__ = [
    "FITS",
    "MENU",
    "Cells",
    "Chip",
    "Comparison",
    "Device",
    "Drift",
    "Effort",
    "Fit",
    "Ledger",
    "Outcome",
    "Plan",
    "Programming",
    "Retrained",
    "Retraining",
    "Rule",
    "Sweep",
    "Table",
    "Trial",
    "WriteVerify",
    "Written",
    "benefit",
    "by_cell",
    "by_significance",
    "by_weight",
    "compare",
    "compensate",
    "each_chip",
    "first_derivative",
    "graded",
    "mean_over_chips",
    "noise_injection",
    "program",
    "rank",
    "rank_cells",
    "read_first",
    "retrain_in_situ",
    "select",
    "select_cells",
    "sweep",
    "write_verify",
]

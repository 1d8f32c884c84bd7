"""Posteriors larger than memory: plan them, record them while training, compare what they predict."""

from weightbank.posterior.compare import Compared, compare, compare_law
from weightbank.posterior.paper import paper_bytes, paper_epochs, paper_table
from weightbank.posterior.plan import Plan, plan
from weightbank.posterior.recorder import last_weights, record
from weightbank.posterior.schedule import swag_schedule
from weightbank.posterior.spending import row_options
from weightbank.posterior.timings import Timings
from weightbank.posterior.verdict import paired, verdict

__all__ = [
    "Compared",
    "Plan",
    "Timings",
    "compare",
    "compare_law",
    "last_weights",
    "paired",
    "paper_bytes",
    "paper_epochs",
    "paper_table",
    "plan",
    "record",
    "row_options",
    "swag_schedule",
    "verdict",
]

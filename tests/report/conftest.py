import math

import pytest

from weightbank.cim.sweep import Row, Sweep
from weightbank.evaluation import Estimate

METHODS = {"random": 0.9, "magnitude": 1.6, "published": 4.0, "curvature": 7.0, "cells": 11.0, "read first": 18.0}
BUDGETS = (0.0, 0.001, 0.01, 0.1, 1.0)


@pytest.fixture
def found() -> Sweep:
    """Six methods that begin at 0.81 and end at 0.981, their exact weights at 0.982."""
    rows = []
    for name, speed in METHODS.items():
        for budget in BUDGETS:
            drop = 0.17 * math.exp(-speed * budget**0.45) if budget < 1 else 0.0
            accuracy = Estimate(0.981 - drop, 0.002, 300)
            low, high = accuracy.mean - 0.004, accuracy.mean + 0.004
            cycles = (budget, budget, (1 + 9 * budget) / 10, 5 * budget)
            rows.append(Row(name, budget, *cycles, accuracy, low, high, f"{name}{budget}"))
    return Sweep("LeNet", 0.982, "0" * 16, "1" * 16, tuple(rows))

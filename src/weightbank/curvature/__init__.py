"""How much each weight matters: the diagonal of a curvature of the mean loss, one function `Task -> (P,)` per file.

Scores stand in the order of `task.layout`. Moving the weights by δ raises the mean loss by ½ Σ_i h_i δ_i² to second
order, other entries of the curvature left out; `magnitude` and `random` are orders of weights without a unit.
"""

from weightbank.curvature.backprop import backprop
from weightbank.curvature.fisher import fisher
from weightbank.curvature.fisher_empirical import fisher_empirical
from weightbank.curvature.ggn import ggn
from weightbank.curvature.ggn_sampled import ggn_sampled
from weightbank.curvature.hutchinson import hutchinson
from weightbank.curvature.magnitude import magnitude
from weightbank.curvature.random import random
from weightbank.errors import CurvatureError

__all__ = [
    "CurvatureError",
    "backprop",
    "fisher",
    "fisher_empirical",
    "ggn",
    "ggn_sampled",
    "hutchinson",
    "magnitude",
    "random",
]

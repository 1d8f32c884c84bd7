"""How much each weight matters: the diagonal of a curvature of the mean loss, `Task -> (P,)`."""

from weightbank.curvature.errors import CurvatureError
from weightbank.curvature.ggn_sampled import ggn_sampled

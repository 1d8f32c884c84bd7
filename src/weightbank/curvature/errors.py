"""The one error of this package."""

from weightbank.errors import WeightbankError


class CurvatureError(WeightbankError, ValueError):
    """A task whose curvature cannot be had this way: an unknown loss, a random model, a layer without a rule."""

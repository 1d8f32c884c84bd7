"""Figures of results, legible on a phone and on light and dark pages; needs the `report` extra (matplotlib)."""

from weightbank.report.figures import accuracy_figure
from weightbank.report.saving import drawing, save_figure
from weightbank.report.theory import Compared, theory_figure

__all__ = ["Compared", "accuracy_figure", "drawing", "save_figure", "theory_figure"]

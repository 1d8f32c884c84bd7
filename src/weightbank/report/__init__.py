"""Figures of results, legible on a phone and on light and dark pages; needs the `report` extra (matplotlib)."""

from weightbank.report.figures import accuracy_figure
from weightbank.report.saving import drawing, save_figure

__all__ = ["accuracy_figure", "drawing", "save_figure"]

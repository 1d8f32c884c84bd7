from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from weightbank.errors import DataError
from weightbank.evaluation import Estimate
from weightbank.report.theory import Compared, theory_figure


def points() -> list[Compared]:
    """Three laws that measure as predicted at first, and more later; the last leaves the figure."""
    found = []
    for law, growth in {"rounding": 0.1, "device": 1.0, "spread, SWAG": 90.0}.items():
        for setting, predicted in {"small": 1e-5, "middle": 1e-3, "large": 0.1}.items():
            measured = Estimate(predicted * (1 + growth * predicted**0.5), 1e-4, 12)
            found.append(Compared(law, setting, predicted, measured))
    return found


def test_each_law_is_a_line_of_its_ratios() -> None:
    axes = theory_figure(points()).axes[0]
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(lines) == 3
    for line, law in zip(lines, ("rounding", "device", "spread, SWAG"), strict=True):
        some = [point for point in points() if point.law == law]
        assert list(line.get_xdata()) == [point.predicted for point in some]
        assert list(line.get_ydata()) == [min(point.ratio, 5.0) for point in some]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_within_means_a_factor_of_one_and_a_half() -> None:
    for ratio, within in ((0.66, False), (0.67, True), (1.5, True), (1.51, False), (-1.0, False)):
        assert Compared("law", "setting", 2.0, Estimate(2 * ratio, None, 1)).within is within


def test_names_are_on_the_figure_and_apart() -> None:
    figure = theory_figure(points(), title="digits")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {
        text.get_text(): Text.get_window_extent(text, canvas.get_renderer())
        for text in figure.findobj(Text)
        if text.get_text() and text.get_visible()
    }
    names = ("rounding", "device", "spread, SWAG", "digits", "measured / predicted", "predicted increase of the loss")
    for name in names:
        assert figure.bbox.x0 <= boxes[name].x0 < boxes[name].x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= boxes[name].y0 < boxes[name].y1 <= figure.bbox.y1, name
    for a, b in combinations(names, 2):
        assert not boxes[a].overlaps(boxes[b]), (a, b)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(DataError, match="0 points"):
        theory_figure([])
    with pytest.raises(DataError, match="without a positive prediction"):
        theory_figure([Compared("law", "setting", 0.0, Estimate(1.0, None, 1))])

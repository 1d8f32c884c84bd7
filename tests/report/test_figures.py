from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy.optimize import minimize

from weightbank.errors import DataError
from weightbank.evaluation import Estimate
from weightbank.report import accuracy_figure
from weightbank.report.figures import spread
from weightbank.report.themes import DARK, LIGHT, swapped


def texts(figure):
    """Every visible text with its box in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = {}
    for text in figure.findobj(lambda thing: hasattr(thing, "get_text") and thing.get_text() and thing.get_visible()):
        found[text.get_text()] = Text.get_window_extent(text, renderer)  # of an annotation: without its line
    return found


def curves(figure):
    """The lines of methods: those with a point marker."""
    return [line for line in figure.axes[0].lines if line.get_marker() == "o"]


def test_each_method_is_a_line_of_its_numbers_with_its_band(found):
    figure = accuracy_figure(found)
    lines = curves(figure)
    assert len(lines) == len(found.methods)
    for line, name in zip(lines, found.methods, strict=True):
        rows = [row for row in found.of(name) if row.write_cycles > 0]
        assert list(line.get_xdata()) == [100 * row.write_cycles for row in rows]
        assert list(line.get_ydata()) == [row.accuracy.mean for row in rows]
    assert len(figure.axes[0].collections) == len(lines)
    for band, name in zip(figure.axes[0].collections, found.methods, strict=True):
        corners = band.get_paths()[0].vertices[:, 1]
        rows = [row for row in found.of(name) if row.write_cycles > 0]
        assert corners.min() == min(row.low for row in rows)
        assert corners.max() == max(row.high for row in rows)


def test_names_and_numbers_are_on_the_figure_and_apart(found):
    figure = accuracy_figure(found, title="LeNet")
    shown = texts(figure)
    whole = figure.bbox
    for name in (*found.methods, "exact weights 98.2", "nothing verified 81.1", "LeNet", "accuracy %"):
        box = shown[name]
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, name
    for a, b in combinations(found.methods, 2):
        assert not shown[a].overlaps(shown[b]), (a, b)


def test_letters_are_legible_at_the_width_of_a_phone(found):
    figure = accuracy_figure(found)
    at_360_pixels = 360 / (72 * figure.get_figwidth())  # pixels per point
    sizes = [text.get_fontsize() for text in figure.findobj(lambda thing: hasattr(thing, "get_fontsize"))]
    assert min(sizes) * at_360_pixels >= 9


def test_axes_are_logarithmic_where_the_numbers_ask_for_it(found):
    axes = accuracy_figure(found).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_yscale() == "function"
    # Equal ratios of errors are equal distances: 0.9 is as far from 0.98 as 0.8 is from 0.96.
    y = axes.transData.transform([(1, value) for value in (0.9, 0.98, 0.8, 0.96)])[:, 1]
    assert y[1] - y[0] == pytest.approx(y[3] - y[2])
    near = [
        replace(row, accuracy=Estimate(0.9 + row.budget / 100, 0.001, 9)) for row in found.rows if row.budget >= 0.1
    ]
    axes = accuracy_figure(replace(found, clean=0.92, rows=tuple(near))).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_losses_and_perfect_scores_can_be_drawn(found):
    losses = [replace(row, accuracy=Estimate(-1 - row.budget, 0.1, 9), low=-3.0, high=0.0) for row in found.rows]
    assert "minus the loss" in texts(accuracy_figure(replace(found, clean=-1.0, rows=tuple(losses))))
    perfect = [replace(row, accuracy=Estimate(1.0, 0.0, 9), low=1.0, high=1.0) for row in found.rows[-2:]]
    rows = (*found.rows[:-2], *perfect)
    shown = texts(accuracy_figure(replace(found, clean=1.0, rows=rows)))
    assert "exact weights 100.0" in shown


def test_other_costs_can_be_the_horizontal_axis(found):
    line = curves(accuracy_figure(found, axis="reads"))[0]
    assert list(line.get_xdata()) == pytest.approx([0.005, 0.05, 0.5, 5.0])
    total = curves(accuracy_figure(found, axis="total_write_cycles"))[0]
    assert total.get_xdata()[0] == pytest.approx(10.0)


def test_a_dark_figure_has_the_dark_colours(found):
    light, dark = accuracy_figure(found), accuracy_figure(found, dark=True)
    assert [line.get_color() for line in curves(light)] == list(LIGHT.lines[:6])
    assert [line.get_color() for line in curves(dark)] == list(DARK.lines[:6])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_colour_can_be_read_on_its_page(theme):
    def luminance(colour):
        parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    page = luminance(theme.page)
    for colour in (theme.text, theme.muted, *theme.lines):
        high, low = sorted((luminance(colour), page), reverse=True)
        # WCAG 2.1, 1.4.3 and 1.4.11: 4.5 for text, 3 for large letters and graphics; names of lines are both.
        assert (high + 0.05) / (low + 0.05) >= (4.5 if colour in (theme.text, theme.muted) else 3.0), colour
    assert len(swapped()) == 4 + len(LIGHT.lines)


def test_nothing_to_draw_is_refused(found):
    with pytest.raises(DataError, match="none with write_cycles above 0"):
        accuracy_figure(replace(found, rows=tuple(row for row in found.rows if row.budget == 0)))


@pytest.mark.parametrize("seed", range(5))
def test_places_are_the_nearest_that_are_far_enough_apart(seed):
    """Against a general solver of the same quadratic programme."""
    generator = np.random.default_rng(seed)
    wanted = np.sort(generator.uniform(0, 10, 7))
    places = np.array(spread(list(wanted), 1.2, 0.5, 9.5))
    between = [{"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - 1.2} for i in range(6)]
    start = np.linspace(0.5, 9.5, 7)
    best = minimize(lambda x: ((x - wanted) ** 2).sum(), start, bounds=[(0.5, 9.5)] * 7, constraints=between)
    assert np.diff(places).min() >= 1.2 - 1e-12
    assert places == pytest.approx(best.x, abs=1e-4)  # the solver's own tolerance

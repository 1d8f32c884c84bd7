"""The figure of the front page: how much perturbed weights should cost, and how much they do.

    python benchmarks/front_figure.py docs/figures/predicted.svg     # half a minute on one core

One perceptron of the embedded digits; each law of `benchmarks/budget.py` whose errors are each weight's own: what
½ Σ h E[δ²] predicts of the mean loss, and the rise that was measured, with twice its standard error.
"""

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from matplotlib.figure import Figure

from budget import COUPLED, compared, gradient, laws, trained
from weightbank.curvature import ggn
from weightbank.data import digits
from weightbank.report import Compared, save_figure
from weightbank.report.themes import LIGHT
from weightbank.zoo import mlp

NAMES = {
    "rounding": "rounded, 8 to 2 bits",
    "device": "noisy device",
    "verified": "the same, a tenth verified",
    "spread, diagonal": "posterior spread",
    "together": "rounded, then on a device",
}
LEAST = 7e-6
"""Increases below are not drawn."""


def points(samples: int) -> list[Compared]:
    """Every setting of every law, on the network of `benchmarks/budget.py`."""
    chosen = argparse.Namespace(epochs=12, examples=1_000, batch=25)
    data = digits()
    torch.manual_seed(0)
    task = trained("mlp", mlp(64, 48, 32, 24, 10), data, chosen)
    h, g = ggn(task), gradient(task)
    rows = [compared(task, h, g, *law, samples) for law in laws(task, h, data, 0) if law[0] not in COUPLED]
    return [row.compared for row in rows if row.compared.predicted > LEAST]


def drawn(found: list[Compared]) -> Figure:
    """Measured against predicted, both logarithmic; the line is equality, the band a factor of 1.5."""
    figure = Figure(figsize=(4.6, 3.9), facecolor=LIGHT.page)  # so narrow that a phone shrinks it but little
    axes = figure.add_axes((0.125, 0.15, 0.855, 0.75), facecolor="none")
    low, high = LEAST, 2 * max(point.measured.mean for point in found)
    axes.fill_between([low, high], [low / 1.5, high / 1.5], [low * 1.5, high * 1.5], color=LIGHT.grid, linewidth=0)
    axes.plot([low, high], [low, high], color=LIGHT.muted, linewidth=1)
    for law, colour in zip(NAMES, LIGHT.lines, strict=False):
        line = sorted((point for point in found if point.law == law), key=lambda point: point.predicted)
        x, y = [point.predicted for point in line], [point.measured.mean for point in line]
        bars = [2 * point.measured.stderr for point in line]
        axes.errorbar(x, y, bars, color=colour, linewidth=0, elinewidth=1, marker="o", markersize=4, label=NAMES[law])
    axes.set(xscale="log", yscale="log", xlim=(low, 6), ylim=(low, high))
    ticks = [10.0**power for power in range(-5, math.floor(math.log10(high)) + 1)]
    axes.set_xticks([tick for tick in ticks if tick < 6])
    axes.set_yticks(ticks)
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1e-3 else f"1e{math.log10(value):.0f}")
    axes.tick_params(length=0, labelsize=9.5, labelcolor=LIGHT.text)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(frameon=False, fontsize=10, labelcolor=LIGHT.text, loc="upper left", handletextpad=0, labelspacing=0.3)
    figure.text(0.98, 0.02, "the loss should rise by ½ Σ h E[δ²]", ha="right", fontsize=10, color=LIGHT.text)
    figure.text(0.01, 0.94, "the loss rises by", fontsize=10, color=LIGHT.text)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path, help=".svg or .png")
    parser.add_argument("--samples", type=int, default=30, help="draws of each law")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found = points(chosen.samples)
    for point in found:
        print(f"{point.law:18} {point.setting:20} {point.predicted:10.3g} {point.measured.text}")
    save_figure(drawn(found), chosen.figure)


if __name__ == "__main__":
    main()

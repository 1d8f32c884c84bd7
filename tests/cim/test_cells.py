import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightbank.cim import Cells, Device
from weightbank.errors import LayoutError, NonFiniteError
from weightbank.layout import Entry, Layout

QUIET = {"sigma": 0.0, "verified_sigma": 0.0}


def row(weights: torch.Tensor) -> Layout:
    return Layout((Entry("w", (1, len(weights)), 0, weights.dtype),))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12), st.integers(1, 12), st.data())
def test_weights_survive_a_device_without_errors(weights, bits, data):
    theta = torch.tensor(weights)
    device = Device(bits, data.draw(st.integers(1, bits)), **QUIET, pairs=data.draw(st.booleans()), stuck_low=1e-300)
    cells = Cells.of(row(theta), device, theta)
    mean, variance = cells.moments(lambda row, level: (0.0, 0.0))
    torch.testing.assert_close(mean, theta, atol=4 * 2.0**-23, rtol=0)  # the largest weight's rounding
    assert float(variance.abs().max()) < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12), st.integers(1, 10), st.data())
def test_quantized_levels_are_whole_digits_of_the_nearest_value(weights, bits, data):
    theta = torch.tensor(weights)
    cell_bits = data.draw(st.integers(1, bits))
    device = Device(bits, cell_bits, quantized=True)
    cells = Cells.of(row(theta), device, theta)
    levels = torch.stack(list(cells.levels()))
    assert torch.equal(levels, levels.round())
    assert float(levels.min()) >= 0
    assert float(levels.max()) <= 2**cell_bits - 1
    got = (torch.tensor(device.places) @ levels).double()
    grid = torch.arange(2**bits) / 2**bits
    distance = (got - cells.relative).abs()
    best = (grid - cells.relative[:, None].double()).abs().min(1).values
    torch.testing.assert_close(distance, best, atol=1e-7, rtol=0)


def test_without_quantizing_the_last_cell_holds_the_rest():
    theta = torch.tensor([0.3, 1.0])
    levels = torch.stack(list(Cells.of(row(theta), Device(3, 1, stuck_low=0.1), theta).levels()))
    torch.testing.assert_close(levels[:, 0], torch.tensor([0.0, 1.0, 0.4]))  # 0.3 = 0/2 + 1/4 + 0.4/8


def test_a_layout_alone_has_no_weights(layout):
    with pytest.raises(LayoutError, match="pass theta="):
        Cells.of(layout, Device())


def test_weights_must_be_finite(layout, theta):
    theta[2] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 46"):
        Cells.of(layout, Device(), theta)


def test_a_tensor_of_zeros_stays_zero():
    theta = torch.zeros(3)
    cells = Cells.of(row(theta), Device(quantized=True), theta)
    mean, variance = cells.moments(lambda row, level: (0.0, 1.0))
    assert torch.equal(mean, theta)
    assert torch.equal(variance, theta)

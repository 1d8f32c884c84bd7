import itertools

import pytest
import torch
from torch import nn

from weightbank.budget import allocate, format_options, mixed_precision
from weightbank.errors import CapacityError, DataError, LayoutError
from weightbank.formats import BlockFloatingPoint, format_of
from weightbank.layout import Layout

FORMATS = ["bfp4", "bfp8", "bf16"]


def network() -> tuple[Layout, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layout = Layout.of(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 10)))
    theta = torch.randn(layout.size, generator=generator)
    curvature = torch.rand(layout.size, generator=generator)
    curvature[layout.slice("1.weight")] *= 100
    return layout, theta, curvature


def test_options_cost_what_rounding_does_to_the_loss() -> None:
    layout, theta, curvature = network()
    options = format_options(theta, layout, curvature, FORMATS)
    for place, entry in enumerate(layout.entries):
        span = layout.slice(entry.name)
        for way, name in enumerate(FORMATS):
            rounded = format_of(name).quantize(theta[span].view(entry.shape)).reshape(-1)
            slow = sum(
                0.5 * float(h) * float(r - t) ** 2
                for h, r, t in zip(curvature[span], rounded, theta[span], strict=True)
            )
            assert float(options.increase[place, way]) == pytest.approx(slow, rel=1e-5)
            assert float(options.costs["bytes"][place, way]) >= entry.size * int(name.strip("bfp")[:2]) / 8


def test_the_mix_is_the_best_of_all_within_its_bytes() -> None:
    layout, theta, curvature = network()
    options = format_options(theta, layout, curvature, FORMATS)
    budget = 1_700.0
    best = min(
        sum(float(options.increase[place, way]) for place, way in enumerate(ways))
        for ways in itertools.product(range(3), repeat=4)
        if sum(float(options.costs["bytes"][place, way]) for place, way in enumerate(ways)) <= budget
    )
    assert allocate(options, {"bytes": budget}).increase == pytest.approx(best)
    chosen = mixed_precision(theta, layout, curvature, bytes=budget, formats=FORMATS)
    increase = sum(
        float(
            options.increase[place, FORMATS.index("bf16" if "16" in repr(chosen[name]) else f"bfp{chosen[name].bits}")]
        )
        for place, name in enumerate(layout.names)
    )
    assert increase == pytest.approx(best)


def test_important_tensors_get_more_bits() -> None:
    layout, theta, curvature = network()
    chosen = mixed_precision(theta, layout, curvature, bytes=1_100, formats=FORMATS)
    assert chosen["0.weight"] == BlockFloatingPoint(4, block=32)
    assert chosen["1.weight"] != BlockFloatingPoint(4, block=32)


def test_what_cannot_be_is_refused() -> None:
    layout, theta, curvature = network()
    with pytest.raises(CapacityError, match="bytes"):
        mixed_precision(theta, layout, curvature, bytes=100, formats=FORMATS)
    with pytest.raises(DataError, match="no formats"):
        format_options(theta, layout, curvature, [])
    with pytest.raises(LayoutError):
        format_options(theta[:10], layout, curvature[:10], FORMATS)

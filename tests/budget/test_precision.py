import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from weightbank.budget import allocate, format_options, mixed_precision
from weightbank.distributions.packed import PackedWeights, pack
from weightbank.errors import CapacityError, DataError, FormatError, LayoutError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Mixed, format_of
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


def by_row() -> tuple[Layout, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    layout = Layout.of(nn.Sequential(nn.Linear(40, 3), nn.Linear(3, 2)))
    theta = torch.randn(layout.size, generator=generator)
    curvature = torch.rand(layout.size, generator=generator)
    curvature[:40] *= 1_000  # the first row of the first matrix
    return layout, theta, curvature


ROW_FORMATS = [BlockFloatingPoint(bits, block=ByDimensions()) for bits in (3, 8)]


def test_the_mix_by_row_is_the_best_of_all_within_its_bytes() -> None:
    layout, theta, curvature = by_row()
    places = [("0.weight", 0), ("0.weight", 1), ("0.weight", 2), ("0.bias", 0), ("1.weight", 0), ("1.weight", 1)]
    places.append(("1.bias", 0))
    cost, worth = {}, {}
    for name, row in places:
        entry = layout.entries[layout.names.index(name)]
        weights = theta[layout.slice(name)].view(entry.shape)
        h = curvature[layout.slice(name)].view(entry.shape)
        if weights.ndim > 1:
            weights, h = weights[row : row + 1], h[row : row + 1]
        for way, format in enumerate(ROW_FORMATS):
            packed = format.pack(weights)
            cost[name, row, way] = weights.numel() * format.bits / 8 + packed.scales.numel() + 1
            worth[name, row, way] = float(0.5 * (h.double() * (packed.unpack() - weights).double().square()).sum())
    budget = 130.0
    within = budget - len(ROW_FORMATS) * len(layout.entries)
    best = min(
        sum(worth[*place, way] for place, way in zip(places, ways, strict=True))
        for ways in itertools.product(range(2), repeat=len(places))
        if sum(cost[*place, way] for place, way in zip(places, ways, strict=True)) <= within
    )
    chosen = mixed_precision(theta, layout, curvature, bytes=budget, formats=ROW_FORMATS, by="row")
    packed = pack(theta, layout, chosen)
    increase = 0.5 * float(curvature.double() @ (packed.unpack() - theta).double().square())
    assert increase == pytest.approx(best)
    assert packed.nbytes + len(places) <= budget
    first = chosen["0.weight"]
    assert isinstance(first, Mixed)
    assert first.formats[int(first.rows[0])] == ROW_FORMATS[1]


def test_a_mix_by_row_is_kept_in_a_file(tmp_path: Path) -> None:
    layout, theta, curvature = by_row()
    chosen = mixed_precision(theta, layout, curvature, bytes=130, formats=ROW_FORMATS, by="row")
    packed = pack(theta, layout, chosen, tmp_path / "mixed.safetensors")
    assert torch.equal(
        PackedWeights.open(tmp_path / "mixed.safetensors").unpack(), pack(theta, layout, chosen).unpack()
    )
    assert packed.nbytes == pack(theta, layout, chosen).nbytes


def test_blocks_of_several_rows_are_refused_by_row() -> None:
    layout, theta, curvature = by_row()
    with pytest.raises(FormatError, match=r"several rows of '0.weight'"):
        mixed_precision(theta, layout, curvature, bytes=500, formats=[BlockFloatingPoint(8)], by="row")


def test_parameters_without_weights_take_part() -> None:
    module = nn.Module()
    module.w, module.empty = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(0, 4))
    layout, ones = Layout.of(module), torch.ones(12)
    for by in ("tensor", "row"):
        assert set(mixed_precision(ones, layout, ones, bytes=100, formats=ROW_FORMATS, by=by)) == {"w", "empty"}


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_neither_tensor_nor_row_is_refused() -> None:
    layout, theta, curvature = by_row()
    with pytest.raises(DataError, match="'tensor' or 'row'"):
        mixed_precision(theta, layout, curvature, bytes=500, formats=ROW_FORMATS, by="weight")  # type: ignore[arg-type]

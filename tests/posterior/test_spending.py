import itertools
import math

import pytest
import torch
from torch import nn

from weightbank.budget import allocate
from weightbank.distributions import Moments
from weightbank.errors import CapacityError, DataError
from weightbank.formats import format_of
from weightbank.layout import Layout
from weightbank.posterior.plan import plan
from weightbank.posterior.spending import row_options, unbiasing
from weightbank.store import RowLog

ROWS, FORMATS = (2, 5, 10, 20, 40), ("bfp4", "bfp8", "bf16", "fp32")


def recorded(seed: int = 0, count: int = 30, size: int = 40, **where: str) -> tuple[Moments, torch.Tensor]:
    """Independent iterates whose deviations range over a factor of ten, and a curvature."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout.of(nn.Linear(size, 30))
    deviation = 0.1 * 10 ** torch.rand(layout.size, generator=generator)
    moments = Moments(layout, rows=RowLog(":memory:", **where))
    for _ in range(count):
        moments.update(deviation * torch.randn(layout.size, generator=generator))
    return moments, torch.rand(layout.size, generator=generator)


def test_few_rows_cost_what_estimated_deviations_are_off() -> None:
    """Against 4,000 estimates of a standard deviation from K normal numbers."""
    for count in (2, 5, 20):
        z = torch.randn(4_000, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        off = (z.std(1) - 1).square()
        stderr = float(off.std()) / math.sqrt(len(off))
        assert abs(2 * (1 - unbiasing(count)) - float(off.mean())) < 4 * stderr


@pytest.mark.parametrize("format", ["bfp4", "bfp8"])
def test_coarse_rows_cost_what_they_move_draws(format: str) -> None:
    """Equal generators draw the same combination of the rounded and of the exact rows: half the law moves by r."""
    pilot, curvature = recorded()
    stored, _ = recorded(format=format)
    draws = [
        m.gaussian(deviations="mean").sample(400, generator=torch.Generator().manual_seed(1)) for m in (pilot, stored)
    ]
    moved = 0.5 * ((draws[0] - draws[1]).double().square() @ curvature.double())
    menu = row_options({"one": (pilot, curvature)}, rows=(30,), formats=(format, "fp32"))
    predicted = float(menu.options.increase[0, 0] - menu.options.increase[0, 1])
    stderr = float(moved.std()) / math.sqrt(len(moved))
    # the pilot's newest 16 rows stand for all 30, and rounding errors of one weight are not quite independent: 10 %
    assert abs(predicted - float(moved.mean())) < 4 * stderr + 0.1 * predicted


def test_bytes_are_those_on_the_disk(tmp_path) -> None:
    pilot, curvature = recorded()
    menu = row_options({"one": (pilot, curvature)}, rows=ROWS, formats=FORMATS)
    for (count, format), nbytes in zip(menu.ways, menu.options.costs["bytes"][0].tolist(), strict=True):
        assert nbytes == plan(pilot.layout, iterates=count, format=format).bytes
    layout = pilot.layout
    moments = Moments(layout, rows=RowLog(tmp_path / "rows", format="bfp8"))
    for number in range(20):
        moments.update(torch.full((layout.size,), float(number)))
    moments.close()
    on_disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "rows").iterdir() if path.name != "staging.bin")
    expected = float(menu.options.costs["bytes"][0, menu.ways.index((20, format_of("bfp8")))])
    assert abs(on_disk - expected) <= 0.25 * expected  # file systems round files up, and leave holes out


def test_a_disk_for_two_posteriors_is_spent_as_the_best_of_all_pairs() -> None:
    pilots = {"small": recorded(0), "large": recorded(1, size=300)}
    menu = row_options(pilots, rows=ROWS, formats=FORMATS)
    bytes, increase = menu.options.costs["bytes"], menu.options.increase
    least = float(bytes.min(1).values.sum())
    for budget in (1.05 * least, 1.5 * least, 3 * least):
        best = min(
            float(increase[0, a] + increase[1, b])
            for a, b in itertools.product(range(len(menu.ways)), repeat=2)
            if float(bytes[0, a] + bytes[1, b]) <= budget
        )
        found = allocate(menu.options, {"bytes": budget})
        assert found.increase == pytest.approx(best)
        chosen = menu.chosen(found)
        assert sum(plan(pilots[n][0].layout, iterates=k, format=f).bytes for n, (k, f) in chosen.items()) <= budget
    with pytest.raises(CapacityError, match="bytes"):
        allocate(menu.options, {"bytes": least - 1})


def test_rows_of_four_bits_are_many_and_of_thirty_two_few() -> None:
    """At the bytes of 10 rows in float32 the best is more rows in fewer bits."""
    pilot, curvature = recorded(size=300)
    menu = row_options({"one": (pilot, curvature)}, rows=ROWS, formats=FORMATS)
    budget = float(menu.options.costs["bytes"][0, menu.ways.index((10, format_of("fp32")))])
    count, format = menu.chosen(allocate(menu.options, {"bytes": budget}))["one"]
    assert count > 10
    assert format.bits_per_weight < 16


def test_impossible_menus_are_refused() -> None:
    pilot, curvature = recorded()
    for options in (
        {"rows": (1,), "formats": FORMATS},
        {"rows": (), "formats": FORMATS},
        {"rows": ROWS, "formats": ()},
    ):
        with pytest.raises(DataError, match="wanted"):
            row_options({"one": (pilot, curvature)}, **options)
    with pytest.raises(DataError, match="'one' has no two rows"):
        row_options({"one": (Moments(pilot.layout), curvature)}, rows=ROWS, formats=FORMATS)

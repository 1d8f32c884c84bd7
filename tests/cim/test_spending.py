import pytest
import torch
from torch import nn

from weightbank.budget import allocate, expected_increase
from weightbank.cim import Cells, Device, program, select_cells
from weightbank.cim.spending import bits_and_cycles, cell_options
from weightbank.errors import CapacityError, DataError
from weightbank.layout import Layout


def network() -> tuple[Layout, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layout = Layout.of(nn.Sequential(nn.Linear(20, 15), nn.Linear(15, 4)))
    return layout, torch.randn(layout.size, generator=generator), torch.rand(layout.size, generator=generator)


@pytest.mark.parametrize("count", [0, 1, 37, 500, 1_440])
def test_a_budget_of_cycles_buys_what_selective_write_verify_selects(count: int) -> None:
    layout, theta, score = network()
    cells = Cells.of(layout, Device(weight_bits=4, sigma=0.3), theta)
    found = allocate(cell_options(score, cells), {"cycles": count}, exact=False)
    bought = found.choice.view(4, -1).bool() & cells.on_device
    assert torch.equal(bought, select_cells(score, cells, count=count))
    assert found.spent["cycles"] == count


def test_options_of_tensors_add_up_to_the_expected_increase_of_the_law() -> None:
    layout, theta, score = network()
    device = Device(weight_bits=8, sigma=0.3)
    menu = bits_and_cycles(score, layout, device, bits=(2, 4, 8), shares=(0.0, 0.1, 1.0), theta=theta)
    found = allocate(menu.options, {"cells": 1_500, "cycles": 300})
    assert found.increase == pytest.approx(expected_increase(score, menu.law(found), theta=theta), rel=1e-5)
    assert found.spent["cells"] <= 1_500
    assert found.spent["cycles"] <= 300
    assert set(menu.chosen(found)) == set(layout.names)


def test_all_cells_verified_at_full_bits_is_the_verified_chip() -> None:
    layout, theta, score = network()
    device = Device(weight_bits=8, sigma=0.3, quantized=True)
    menu = bits_and_cycles(score, layout, device, bits=(8,), shares=(1.0,), theta=theta)
    found = allocate(menu.options, {"cells": 1e9, "cycles": 1e9})
    chip = program(layout, device, torch.ones(layout.size, dtype=torch.bool), theta=theta)
    torch.testing.assert_close(menu.law(found).variance(), chip.variance())
    assert found.spent == {"cells": 8 * 360, "cycles": 8 * 360}


def test_one_budget_for_both_beats_spending_each_alone() -> None:
    layout, theta, score = network()
    score[layout.slice("1.weight")] *= 30
    device = Device(weight_bits=8, sigma=0.3)
    both = bits_and_cycles(score, layout, device, bits=(2, 3, 4, 6, 8), shares=(0.0, 0.05, 0.2, 0.5), theta=theta)
    budget = {"cells": 4.0 * 360, "cycles": 0.05 * 4 * 360}
    joint = allocate(both.options, budget)
    uniform_bits = bits_and_cycles(score, layout, device, bits=(4,), shares=(0.0, 0.05, 0.2, 0.5), theta=theta)
    uniform_share = bits_and_cycles(score, layout, device, bits=(2, 3, 4, 6, 8), shares=(0.05,), theta=theta)
    assert joint.increase < allocate(uniform_bits.options, budget).increase
    assert joint.increase < allocate(uniform_share.options, budget).increase


def test_impossible_budgets_and_menus_are_refused() -> None:
    layout, theta, score = network()
    menu = bits_and_cycles(score, layout, Device(sigma=0.3), bits=(4,), shares=(0.5,), theta=theta)
    with pytest.raises(CapacityError, match="cells"):
        allocate(menu.options, {"cells": 10, "cycles": 1e6})
    with pytest.raises(DataError, match="shares"):
        bits_and_cycles(score, layout, Device(), bits=(4,), shares=(2.0,), theta=theta)

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightbank.budget import Options, allocate
from weightbank.errors import CapacityError, DataError, NonFiniteError


def problem(seed: int, groups: int, options: int, resources: int) -> tuple[Options, dict[str, float]]:
    generator = torch.Generator().manual_seed(seed)
    increase = torch.rand(groups, options, generator=generator, dtype=torch.float64)
    costs = {
        f"r{number}": torch.randint(0, 10, (groups, options), generator=generator).double()
        for number in range(resources)
    }
    budget = {
        name: float(cost.min(1).values.sum()) + float(torch.rand((), generator=generator)) * 6 * groups
        for name, cost in costs.items()
    }
    return Options(increase, costs), budget


def best_by_trying_all(options: Options, budget: dict[str, float]) -> float:
    groups, ways = options.increase.shape
    best = math.inf
    for choice in itertools.product(range(ways), repeat=groups):
        index = torch.tensor(choice)[:, None]
        if all(float(options.costs[name].gather(1, index).sum()) <= limit + 1e-9 for name, limit in budget.items()):
            best = min(best, float(options.increase.gather(1, index).sum()))
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2))
def test_small_allocations_equal_trying_every_choice(seed: int, groups: int, ways: int, resources: int) -> None:
    options, budget = problem(seed, groups, ways, resources)
    best = best_by_trying_all(options, budget)
    if math.isinf(best):
        with pytest.raises(CapacityError):
            allocate(options, budget)
        return
    found = allocate(options, budget)
    assert found.increase == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert all(found.spent[name] <= limit + 1e-9 for name, limit in budget.items())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2))
def test_lagrangian_choices_keep_the_budget_and_their_bound_is_one(
    seed: int, groups: int, ways: int, resources: int
) -> None:
    options, budget = problem(seed, groups, ways, resources)
    best = best_by_trying_all(options, budget)
    try:
        found = allocate(options, budget, exact=False)
    except CapacityError:
        assert resources == 2  # there the price may pass over the only choices that fit
        return
    assert all(found.spent[name] <= limit + 1e-9 for name, limit in budget.items())
    assert found.bound <= best + 1e-9
    assert found.increase >= best - 1e-9


def test_many_places_come_within_one_step_of_the_bound() -> None:
    options, budget = problem(0, 20_000, 4, 1)
    found = allocate(options, budget)
    assert found.increase - found.bound <= float(options.increase.max())  # one place's worth, of 20,000
    assert found.spent["r0"] <= budget["r0"]


def test_two_budgets_of_many_places_come_near_the_bound() -> None:
    options, budget = problem(1, 2_000, 3, 2)
    found = allocate(options, budget, exact=False)
    assert all(found.spent[name] <= budget[name] for name in budget)
    assert found.increase - found.bound <= 0.01 * found.bound


def test_equal_costs_of_one_pick_the_largest_gains_and_the_first_of_equals() -> None:
    gain = torch.tensor([0.3, 0.9, 0.3, 0.1, 0.9])
    options = Options(torch.stack([gain, torch.zeros(5)], 1), {"cycles": torch.tensor([[0.0, 1.0]]).expand(5, 2)})
    for exact in (False, True):
        found = allocate(options, {"cycles": 2}, exact=exact)
        assert found.choice.tolist() == [0, 1, 0, 0, 1]
    assert allocate(options, {"cycles": 3}, exact=False).choice.tolist() == [1, 1, 0, 0, 1]


def test_the_price_is_what_one_more_unit_saves() -> None:
    gain = torch.tensor([0.5, 0.25, 0.125])
    options = Options(torch.stack([gain, torch.zeros(3)], 1), {"bytes": torch.tensor([[0.0, 1.0]]).expand(3, 2)})
    two, three = (allocate(options, {"bytes": units}) for units in (1, 2))
    assert two.price["bytes"] == pytest.approx(two.increase - three.increase)
    assert allocate(options, {"bytes": 3}).price["bytes"] == 0


def test_an_option_that_is_not_there_is_never_chosen() -> None:
    options = Options(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), {"bytes": torch.tensor([[1.0, math.inf], [1.0, 2.0]])})
    for exact in (False, True):
        assert allocate(options, {"bytes": 100}, exact=exact).choice.tolist() == [0, 1]


def refused() -> list[tuple[Tensor, dict[str, Tensor], dict[str, float], type[Exception], str]]:
    ones = torch.ones(2, 2)
    return [
        (ones, {"bytes": ones}, {"bytes": 1}, CapacityError, "need 2 bytes, the budget is 1"),
        (ones, {"bytes": ones}, {"cycles": 1}, DataError, "cycles"),
        (ones, {"bytes": -ones}, {"bytes": 1}, DataError, "-1"),
        (ones, {"bytes": ones[:1]}, {"bytes": 1}, DataError, "wanted"),
        (ones * math.nan, {"bytes": ones}, {"bytes": 1}, NonFiniteError, "NaN"),
        (ones, {"bytes": ones * math.inf}, {"bytes": 1}, DataError, "place 0"),
    ]


@pytest.mark.parametrize(("increase", "costs", "budget", "error", "words"), refused())
def test_impossible_problems_are_refused(
    increase: Tensor, costs: dict[str, Tensor], budget: dict[str, float], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        allocate(Options(increase, costs), budget)


def test_exact_choices_write_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(81)  # where the solver's presolving would talk on stdout
    increase = torch.rand(30, 4, generator=generator, dtype=torch.float64) * 10 ** (81 % 7 - 3)
    cost = torch.randint(0, 1000, (30, 4), generator=generator).double()
    allocate(Options(increase, {"bytes": cost}), {"bytes": float(cost.min(1).values.sum() + 500)}, exact=True)
    assert capfd.readouterr().out == ""

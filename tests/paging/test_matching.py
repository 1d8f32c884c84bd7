from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from weightbank.paging import matching
from weightbank.paging.matching import exact, greedy, match, promising


def of(cost):
    return lambda rows, columns: cost[rows][:, columns]


def total(cost, chosen):
    assert len(set(chosen.tolist())) == len(cost)
    return float(cost.double()[torch.arange(len(cost)), chosen].sum())


@pytest.fixture
def large(uneven, normal):
    """Products of what a page matters and who is there, as page costs are: 150 rows, 200 columns."""
    return (uneven(150, 1).sqrt() * uneven(1, 200, seed=1).sqrt() * normal(150, 200) ** 2).contiguous()


@pytest.mark.parametrize("columns", [5, 6])
def test_exact_is_the_best_of_all_permutations(uneven, columns):
    cost = uneven(5, columns)
    best = min(sum(float(cost[i, j]) for i, j in enumerate(order)) for order in permutations(range(columns), 5))
    assert total(cost, match(of(cost), 5, columns)) == pytest.approx(best, rel=1e-6)


def test_greedy_takes_the_cheapest_left_and_the_first_of_equals():
    cost = torch.tensor([[1.0, 1, 3], [0, 5, 9], [0, 0, 2]])
    assert greedy(of(cost), 3, 3).tolist() == [0, 1, 2]


def test_promising_is_far_better_than_greedy_and_near_the_optimum(large):
    start = greedy(of(large), *large.shape)
    before, chosen = total(large, start), promising(of(large), *large.shape)
    optimum = total(large, torch.from_numpy(linear_sum_assignment(large.numpy())[1]))
    after = total(large, chosen)
    assert optimum <= after * (1 + 1e-9)
    assert after < before
    again = total(large, promising(of(large), *large.shape, start=chosen))
    assert again - optimum < 0.1 * (before - optimum)  # two calls close nine tenths of the gap


def test_with_every_partner_promising_is_exact_but_for_the_grain(large, monkeypatch):
    monkeypatch.setattr(matching, "PARTNERS", 200)
    start = total(large, greedy(of(large), *large.shape))
    optimum = total(large, exact(large))
    found = total(large, promising(of(large), *large.shape))
    assert optimum <= found * (1 + 1e-9)
    assert found <= optimum + start / 100  # costs are rounded to a hundredth of the mean: half a grain each way


def test_promising_never_leaves_a_perfect_start():
    cost = 1 - torch.eye(40)
    start = torch.arange(40)
    assert torch.equal(promising(of(cost), 40, 40, start=start), start)


def test_large_problems_take_the_promising_pairs(large, monkeypatch):
    monkeypatch.setattr(matching, "EXACT", 199)
    assert torch.equal(match(of(large), 150, 200), promising(of(large), 150, 200))


def test_no_rows_need_no_columns():
    assert match(of(torch.zeros(0, 3)), 0, 3).numel() == 0

import math

import pytest
import torch

import pooled
import weightbank as wb
from weightbank.paging import Pool, Score
from weightbank.paging.bound import Bound
from weightbank.paging.commit import hurt, score, worth


def accuracy(value: float) -> Score:
    return Score("accuracy", value, 1000)


def rmse(value: float) -> Score:
    return Score("rmse", value, 1000)


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        (accuracy(0.90), accuracy(0.895), False),
        (accuracy(0.90), accuracy(0.88), True),
        (accuracy(0.90), accuracy(math.nan), True),
        (accuracy(math.nan), accuracy(0.1), False),
        (rmse(2.0), rmse(2.01), False),
        (rmse(2.0), rmse(2.1), True),
        (rmse(2.0), rmse(1.0), False),
        (rmse(2.0), rmse(math.inf), True),
    ],
)
def test_a_network_is_hurt_beyond_its_tolerance(before: Score, after: Score, worse: bool) -> None:
    assert after.worse_than(before, 0.01) is worse
    assert hurt({"a": before}, {"a": after}, {"a": 0.01}) == (["a"] if worse else [])


def test_a_few_examples_more_or_less_do_not_decide() -> None:
    """Three of 130 lost and none won: 2.3 points, of which 1.3 are a standard error; 30 of 1,300 are more."""
    few, many = torch.ones(130, dtype=torch.bool), torch.ones(1300, dtype=torch.bool)
    worse, much = few.clone(), many.clone()
    worse[:3] = False
    much[:30] = False
    before, after = Score("accuracy", 1.0, 130, few), Score("accuracy", 127 / 130, 130, worse)
    assert after.doubt(before) == pytest.approx(3**0.5 / 130)
    assert not after.worse_than(before, 0.01)
    before, after = Score("accuracy", 1.0, 1300, many), Score("accuracy", 1270 / 1300, 1300, much)
    assert after.worse_than(before, 0.01)


def test_gains_count_in_points_or_fractions() -> None:
    before, after = {"a": accuracy(0.5), "b": rmse(2.0)}, {"a": accuracy(0.7), "b": rmse(1.0)}
    assert worth(before, after) == pytest.approx((0.2 + 0.5) / 2)
    assert math.isnan(worth(before, {**after, "a": accuracy(math.nan)}))
    assert accuracy(0.7).reaches(0.7)
    assert not accuracy(0.69).reaches(0.7)
    assert rmse(0.7).reaches(0.7)
    assert not rmse(0.71).reaches(0.7)
    assert str(accuracy(0.5)) == "50.00 %"
    assert str(rmse(0.5)) == "rmse 0.5"


def bound(pool: Pool, task: wb.Task) -> Bound:
    with pool.edit() as draft:
        draft.publish = False
    return Bound(draft.tenants[task.name], task.model, draft.values, torch.zeros_like(draft.values))


@pytest.mark.parametrize("placement", ["extents", "pages"])
def test_a_score_is_that_of_the_memory_and_a_broken_one_is_nan(placement: str) -> None:
    pool = pooled.filled(placement=placement)
    task = pooled.tasks()[0]
    held = bound(pool, task)
    found = score(task, held, task.test)  # type: ignore[arg-type]
    assert found.metric == "accuracy"
    assert found.value == pytest.approx(pooled.accuracy(pool, "one"), abs=1e-6)  # one is a float32 mean
    assert found.examples == 500
    held._seen.fill_(math.nan)
    assert math.isnan(score(task, held, task.test).value)  # type: ignore[arg-type]


def test_a_regression_is_judged_by_its_rmse() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(3, 1)
    task = wb.Task("line", model, torch.nn.functional.mse_loss, (x, x[:, :1]), (x, x[:, :1]))
    pool = Pool(16)
    pool.add(task)
    found = score(task, bound(pool, task), task.test)  # type: ignore[arg-type]
    with torch.no_grad():
        wanted = float(torch.nn.functional.mse_loss(model(x), x[:, :1]).sqrt())
    assert found.metric == "rmse"
    assert found.value == pytest.approx(wanted, rel=1e-5)

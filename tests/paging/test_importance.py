import pytest
import torch
import torch.nn.functional as F

from weightbank.errors import LayoutError, NonFiniteError
from weightbank.paging.importance import FLOOR, importance_of, normalised
from weightbank.task import Task


def test_importances_get_the_mean_that_is_asked_for_and_keep_their_proportions() -> None:
    raw = torch.tensor([0.0, 1.0, 3.0]) * 1e-6
    relative, scale = normalised(raw, share=2.0)
    assert scale == pytest.approx(4e-6 / 3)
    assert float(relative.mean()) == pytest.approx(2.0)
    torch.testing.assert_close((relative[2] - relative[0]) / (relative[1] - relative[0]), torch.tensor(3.0))
    assert float(relative[0]) == pytest.approx(2 * FLOOR / (1 + FLOOR))


def test_a_share_is_positive() -> None:
    with pytest.raises(LayoutError, match="share=-1"):
        normalised(torch.ones(3), share=-1.0)


def test_an_infinite_importance_counts_as_the_largest_finite_one() -> None:
    data = torch.randn(8, 2), torch.zeros(8, dtype=torch.int64)
    task = Task("two", torch.nn.Linear(2, 2, bias=False), F.cross_entropy, data, data)
    found = importance_of(task, 1 / torch.tensor([1.0, 0.0, 0.25, 0.5]))
    assert found.tolist() == [1.0, 4.0, 4.0, 2.0]
    assert importance_of(task, 1 / torch.zeros(4)).tolist() == [1.0] * 4
    with pytest.raises(NonFiniteError, match="1 importances are NaN"):
        importance_of(task, torch.tensor([1.0, torch.nan, 1.0, 1.0]))

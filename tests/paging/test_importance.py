import pytest
import torch

from weightbank.errors import LayoutError
from weightbank.paging.importance import FLOOR, normalised


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

import pytest
import torch
from torch import nn

from weightbank.distributions import Gaussian, Point
from weightbank.distributions.patchwork import Patchwork
from weightbank.errors import LayoutError
from weightbank.layout import Layout

LAYOUT = Layout.of(nn.Linear(3, 2))


def test_each_parameter_has_the_moments_of_its_own_law() -> None:
    wide = Gaussian(LAYOUT, torch.arange(8.0), torch.full((8,), 4.0), None)
    still = Point(torch.full((8,), -1.0), LAYOUT)
    law = Patchwork(LAYOUT, {"weight": wide, "bias": still})
    assert law.mean().tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert law.variance().tolist() == [4] * 6 + [0, 0]
    draws = law.sample(5_000, generator=torch.Generator().manual_seed(0))
    assert bool((draws[:, 6:] == -1).all())
    assert float((draws.mean(0) - law.mean())[:6].abs().max()) < 5 * 2 / 5_000**0.5
    torch.testing.assert_close(draws.var(0)[:6], torch.full((6,), 4.0), rtol=0.1, atol=0)  # 5 standard errors
    again = law.sample(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, law.sample(3, generator=torch.Generator().manual_seed(0)))


def test_tensors_of_one_law_are_drawn_together() -> None:
    law = Gaussian(LAYOUT, torch.zeros(8), torch.ones(8), None)
    both = Patchwork(LAYOUT, {"weight": law, "bias": law})
    draw = both.sample(1, generator=torch.Generator().manual_seed(3))[0]
    assert len(set(draw.tolist())) == 8


def test_laws_must_be_over_these_parameters() -> None:
    point = Point(torch.zeros(8), LAYOUT)
    with pytest.raises(LayoutError, match="bias"):
        Patchwork(LAYOUT, {"weight": point})
    with pytest.raises(LayoutError, match="other weights"):
        Patchwork(LAYOUT, {"weight": point, "bias": Point(torch.zeros(3), Layout.of(nn.Linear(2, 1)))})

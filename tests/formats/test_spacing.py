import pytest
import torch

from weightbank.formats.spacing import step_sizes


def test_the_step_of_a_format_is_found_from_its_errors() -> None:
    """A step of 1/8 beside one of 4, and a ragged tail of numbers that the format has."""
    generator = torch.Generator().manual_seed(0)
    fine, coarse = torch.rand(6_400, generator=generator), torch.rand(6_400, generator=generator) * 100
    exact = torch.cat([fine, coarse, torch.zeros(10)])
    rounded = torch.cat([(fine * 8).round() / 8, (coarse / 4).round() * 4, torch.zeros(10)])
    found = step_sizes(exact, rounded, 6_400)
    assert found.shape == exact.shape
    assert float(found[0]) == pytest.approx(1 / 8, rel=0.02)
    assert float(found[6_400]) == pytest.approx(4, rel=0.02)
    assert not bool(found[12_800:].any())
    runs = step_sizes(exact, rounded, 64)
    assert bool((runs[:6_400] < 0.2).all())
    assert bool((runs[6_400:12_800] > 2).all())

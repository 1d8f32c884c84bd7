from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from weightbank.distributions import Moments
from weightbank.errors import LayoutError, PrecisionError
from weightbank.formats import BlockFloatingPoint, ByDimensions, FixedPoint
from weightbank.layout import Layout
from weightbank.lowprecision import ExactAverage, RoundedAverage
from weightbank.store.state import load_state, save_state

LAYOUT = Layout.of(nn.Linear(20, 30))


def iterates(count: int, bits: int = 8) -> list[Tensor]:
    """Around a point, on a block grid as training leaves them; exponents change from one to the next."""
    generator = torch.Generator().manual_seed(0)
    format = BlockFloatingPoint(bits, block=ByDimensions())
    center = torch.randn(LAYOUT.size, generator=generator)
    made = []
    for _ in range(count):
        theta = center + 0.3 * torch.randn(LAYOUT.size, generator=generator)
        parts = [format.quantize(part).flatten() for part in LAYOUT.unravel(theta).values()]
        made.append(torch.cat(parts))
    return made


def test_exact_average_is_the_float64_one_rounded_once_in_any_order() -> None:
    thetas = iterates(50)
    wanted = torch.stack(thetas).double().sum(0)  # 50 numbers of 8 bits: exact in float64
    forwards, backwards = ExactAverage(LAYOUT), ExactAverage(LAYOUT)
    for one, other in zip(thetas, reversed(thetas), strict=True):
        forwards.update(one)
        backwards.update(other)
    assert torch.equal(forwards.mean(), (wanted / 50).float())
    assert torch.equal(forwards.mean(), backwards.mean())


def test_256_iterates_of_8_bits_fit_two_bytes_a_weight_and_one_more_does_not() -> None:
    theta = torch.full((LAYOUT.size,), 127 / 64)
    exact = ExactAverage(LAYOUT)
    for _ in range(256):
        exact.update(theta)
    units = 8 * (30 + 1)
    assert exact.nbytes == 2 * LAYOUT.size + units
    for _ in range(3):
        exact.update(theta)
    assert exact.nbytes == 4 * LAYOUT.size + units
    assert torch.equal(exact.mean(), theta)


def test_exact_average_of_zeros_and_tiny_numbers() -> None:
    exact = ExactAverage(LAYOUT)
    tiny = torch.full((LAYOUT.size,), 2.0**-149)
    exact.update(torch.zeros(LAYOUT.size))
    assert (exact.mean() == 0).all()
    exact.update(3 * tiny)
    assert torch.equal(exact.mean(), 2 * tiny)  # 3/2 of the smallest float: ties to even


def test_numbers_without_a_common_step_are_refused_and_change_nothing() -> None:
    exact = ExactAverage(LAYOUT)
    exact.update(torch.ones(LAYOUT.size))
    odd = torch.ones(LAYOUT.size)
    odd[5] = 2.0**-60
    with pytest.raises(PrecisionError, match=r"'weight' have no common step.*Moments"):
        exact.update(odd)
    with pytest.raises(PrecisionError, match="NaN or infinite"):
        exact.update(odd / 0)
    assert exact.count == 1
    assert (exact.mean() == 1).all()


@pytest.mark.parametrize("kind", ["exact", "rounded"])
def test_averages_go_on_from_their_state(kind: str, tmp_path: Path) -> None:
    def make() -> ExactAverage | RoundedAverage:
        return ExactAverage(LAYOUT) if kind == "exact" else RoundedAverage(LAYOUT, "BlockFloatingPoint(8)", seed=3)

    thetas = iterates(9)
    whole, first, second = make(), make(), make()
    for theta in thetas:
        whole.update(theta)
    for theta in thetas[:4]:
        first.update(theta)
    save_state(tmp_path / "s", first.state_dict(), "test")
    second.load_state_dict(load_state(tmp_path / "s", "test"))
    for theta in thetas[4:]:
        second.update(theta)
    assert torch.equal(whole.mean(), second.mean())
    assert second.count == 9


def test_rounded_average_is_unbiased_and_stays_near() -> None:
    """Each update adds a rounding of at most Δ²/4; those of the past are averaged down with the iterates."""
    thetas = iterates(40)
    exact = Moments(LAYOUT, variance=False)
    for theta in thetas:
        exact.update(theta)
    delta = 2.0**-6
    errors = []
    for seed in range(5):
        average = RoundedAverage(LAYOUT, FixedPoint(10, 6), seed=seed)
        for theta in thetas:
            average.update(theta)
        errors.append(average.mean() - exact.mean())
    error = torch.stack(errors)
    # the error is a sum of roundings n with weights n/40: at most sqrt(sum (n/40)²) Δ/2 = 3.7 Δ/2
    spread = float(error.std())
    assert 0.2 * delta < spread < 3.7 * delta / 2
    assert abs(float(error.mean())) < 5 * spread / error.numel() ** 0.5


def test_six_more_bits_are_practically_lossless() -> None:
    thetas = iterates(100)
    wide, exact = RoundedAverage(LAYOUT, "BlockFloatingPoint(14, block=ByDimensions())"), ExactAverage(LAYOUT)
    for theta in thetas:
        wide.update(theta)
        exact.update(theta)
    noise = float((thetas[-1] - exact.mean()).square().mean())
    assert float((wide.mean() - exact.mean()).square().mean()) < 1e-3 * noise


def test_rounded_average_takes_its_bits_and_nothing_more() -> None:
    average = RoundedAverage(LAYOUT, BlockFloatingPoint(8, block=ByDimensions()))
    with pytest.raises(PrecisionError, match="no iterate"):
        average.mean()
    average.update(torch.randn(LAYOUT.size))
    assert average.nbytes == LAYOUT.size + 30 + 1
    assert torch.equal(average.packed().mean(), average.mean())


def test_states_of_other_averages_are_refused() -> None:
    one, other = RoundedAverage(LAYOUT, "bfp8"), RoundedAverage(LAYOUT, "bfp4")
    one.update(torch.ones(LAYOUT.size))
    with pytest.raises(LayoutError, match="BlockFloatingPoint"):
        other.load_state_dict(one.state_dict())
    exact = ExactAverage(LAYOUT)
    exact.update(torch.ones(LAYOUT.size))
    with pytest.raises(LayoutError, match="other weights"):
        ExactAverage(Layout.of(nn.Linear(2, 2))).load_state_dict(exact.state_dict())

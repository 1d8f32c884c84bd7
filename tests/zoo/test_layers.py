import pytest
import torch

from weightbank.errors import LayoutError
from weightbank.zoo.layers import he_conv, head


@pytest.mark.parametrize(("fan", "channels"), [("fan_out", 50), ("fan_in", 20)])
def test_convolutions_have_the_spread_of_he(fan, channels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = he_conv(20, 50, 3, fan=fan).weight
    # the sample deviation of n normal numbers is off by 1/sqrt(2n) of itself, here 0.7 %: four of them
    assert weight.std().item() == pytest.approx((2 / (9 * channels)) ** 0.5, rel=4 / (2 * weight.numel()) ** 0.5)
    assert weight.mean().abs().item() < 4 * (2 / (9 * channels) / weight.numel()) ** 0.5


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_convolution_of_stride_one_keeps_the_size(kernel):
    assert he_conv(1, 2, kernel)(torch.zeros(1, 1, 9, 8)).shape == (1, 2, 9, 8)


def test_a_bias_starts_at_zero():
    convolution = he_conv(2, 3, 3, bias=True)
    assert convolution.bias is not None
    assert torch.equal(convolution.bias, torch.zeros(3))
    assert he_conv(2, 3, 3).bias is None


@pytest.mark.parametrize("classes", [0, -2])
def test_a_head_without_classes_is_refused(classes):
    with pytest.raises(LayoutError, match=f"classes={classes}"):
        head(8, classes)

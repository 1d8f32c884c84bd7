"""Layers that several networks begin or end with, their weights drawn as published."""

from typing import Literal

from torch import nn

from weightbank.errors import LayoutError


def he_conv(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    bias: bool = False,
    fan: Literal["fan_in", "fan_out"] = "fan_out",
) -> nn.Conv2d:
    """Return a square convolution that keeps the image's size at stride 1; `kernel` must be odd.

    Weights are drawn from N(0, 2 / (kernel² · channels)) with the channels of that `fan` (He et al., ICCV 2015,
    arXiv 1502.01852, eq. 10 and 14); the bias, where there is one, is 0.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(convolution.weight, mode=fan, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def head(inputs: int, classes: int) -> nn.Linear:
    """Return the last layer of a classifier, with torch's own initial weights; its outputs are logits.

    Raises:
        LayoutError: `classes` is not positive.
    """
    if classes < 1:
        raise LayoutError(f"a network needs at least one class, not classes={classes}")
    return nn.Linear(inputs, classes)

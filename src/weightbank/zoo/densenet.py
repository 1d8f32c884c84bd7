"""DenseNet-121 (Huang et al., CVPR 2017, arXiv 1608.06993) with its ImageNet stem: 7x7 of stride 2, then a max pool."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightbank.zoo.layers import he_conv, head

GROWTH = 32
BLOCKS = (6, 12, 24, 16)


def densenet121(classes: int = 10) -> nn.Sequential:
    """Four dense blocks of 6, 12, 24 and 16 layers that add 32 channels each; colour images of 32x32 or more to logits.

    6,880,448 weights, 10 biases and 83,648 BatchNorm parameters for ten classes. Names and order of the parameters are
    torchvision's; convolutions are drawn with their fan-in, the last bias is 0.

    Raises:
        LayoutError: `classes` is not positive.
    """
    channels = 64
    layers: list[tuple[str, nn.Module]] = [
        ("conv0", he_conv(3, channels, 7, stride=2, fan="fan_in")),
        ("norm0", nn.BatchNorm2d(channels)),
        ("relu0", nn.ReLU()),
        ("pool0", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    for number, count in enumerate(BLOCKS, start=1):
        block = nn.Sequential()
        for layer in range(count):
            block.add_module(f"denselayer{layer + 1}", _dense_layer(channels + layer * GROWTH))
        layers.append((f"denseblock{number}", block))
        channels += count * GROWTH
        if number < len(BLOCKS):
            layers.append((f"transition{number}", _transition(channels)))
            channels //= 2
    layers.append(("norm5", nn.BatchNorm2d(channels)))
    classifier = head(channels, classes)
    nn.init.zeros_(classifier.bias)
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(OrderedDict(layers)),
            relu=nn.ReLU(),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )


class Appended(nn.Sequential):
    """Layers whose output is appended to their input, channel after channel."""

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H W"]:
        """Return [x, f(x)]: the input's channels first."""
        y = x
        for layer in self:
            y = layer(y)
        return torch.cat([x, y], dim=1)


def _dense_layer(inputs: int) -> Appended:
    return Appended(
        OrderedDict(
            norm1=nn.BatchNorm2d(inputs),
            relu1=nn.ReLU(),
            conv1=he_conv(inputs, 4 * GROWTH, 1, fan="fan_in"),
            norm2=nn.BatchNorm2d(4 * GROWTH),
            relu2=nn.ReLU(),
            conv2=he_conv(4 * GROWTH, GROWTH, 3, fan="fan_in"),
        )
    )


def _transition(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(inputs),
            relu=nn.ReLU(),
            conv=he_conv(inputs, inputs // 2, 1, fan="fan_in"),
            pool=nn.AvgPool2d(2),
        )
    )

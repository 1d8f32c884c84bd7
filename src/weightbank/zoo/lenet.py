"""The small networks of selective write-verify (Yan, Hu and Shi, DAC 2022, arXiv 2202.08395); all return logits.

The first three take 28x28 grey images in [0, 1], as MNIST has them, the last one 32x32 colour images. Initial weights
are torch's own.
"""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from weightbank.zoo.layers import head


def mlp3(classes: int = 10) -> nn.Sequential:
    """784-32-32-classes: 26,432 weights and 74 biases for ten classes.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return nn.Sequential(OrderedDict([("flatten", nn.Flatten()), *_dense(784, 32, 32), ("fc3", head(32, classes))]))


def mlp4(classes: int = 10) -> nn.Sequential:
    """784-32-32-32-classes: 27,456 weights and 106 biases for ten classes.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return nn.Sequential(OrderedDict([("flatten", nn.Flatten()), *_dense(784, 32, 32, 32), ("fc4", head(32, classes))]))


def lenet(classes: int = 10) -> nn.Sequential:
    """3x3 convolutions of 6 and 16 channels, each pooled, then 784-120-84-classes.

    105,918 weights (54, 864, 94,080, 10,080 and 840 by layer) and 236 biases for ten classes.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return nn.Sequential(
        OrderedDict(
            [
                *_convolution(1, 1, 6),
                ("pool1", nn.MaxPool2d(2)),
                *_convolution(2, 6, 16),
                ("pool2", nn.MaxPool2d(2)),
                ("flatten", nn.Flatten()),
                *_dense(16 * 7 * 7, 120, 84),
                ("fc3", head(84, classes)),
            ]
        )
    )


def convnet(classes: int = 10) -> nn.Sequential:
    """Pairs of 3x3 convolutions of 64, 128 and 256 channels, each pair pooled, then 4096-1024-1024-classes.

    6,397,632 weights and 2,954 biases for ten classes.

    Raises:
        LayoutError: `classes` is not positive.
    """
    layers: list[tuple[str, nn.Module]] = []
    for stage, (inputs, outputs) in enumerate(pairwise((3, 64, 128, 256)), start=1):
        layers += [*_convolution(2 * stage - 1, inputs, outputs), *_convolution(2 * stage, outputs, outputs)]
        layers.append((f"pool{stage}", nn.MaxPool2d(2)))
    layers += [("flatten", nn.Flatten()), *_dense(256 * 4 * 4, 1024, 1024), ("fc3", head(1024, classes))]
    return nn.Sequential(OrderedDict(layers))


def _convolution(number: int, inputs: int, outputs: int) -> list[tuple[str, nn.Module]]:
    return [(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1)), (f"conv{number}_relu", nn.ReLU())]


def _dense(*sizes: int) -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers += [(f"fc{number}", nn.Linear(inputs, outputs)), (f"fc{number}_relu", nn.ReLU())]
    return layers

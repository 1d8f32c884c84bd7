"""VGG networks (Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556) for colour images; they return logits.

VGG-11 is the ImageNet network without dropout that selective write-verify (arXiv 2202.08395) puts on Tiny ImageNet.
VGG-16 and VGG-19 are the CIFAR networks of low-precision averaging (arXiv 1904.11943), 32x32 pixels only.
"""

from collections import OrderedDict

from torch import nn

from weightbank.zoo.layers import he_conv, head

Stages = tuple[tuple[int, ...], ...]
"""Output channels of the 3x3 convolutions; a stage ends with a 2x2 max pool."""

STAGES_11: Stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))
STAGES_16: Stages = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
STAGES_19: Stages = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def vgg11(classes: int = 200) -> nn.Sequential:
    """Eight convolutions, an average pool to 7x7, then 25088-4096-4096-classes; images of 32x32 pixels or more.

    129,574,592 weights and 11,144 biases for 200 classes. Linear weights are drawn from N(0, 0.01²), all biases are 0.

    Raises:
        LayoutError: `classes` is not positive.
    """
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), head(4096, classes)
    )
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(
        OrderedDict(
            features=_features(STAGES_11, batch_norm=False),
            avgpool=nn.AdaptiveAvgPool2d(7),
            flatten=nn.Flatten(),
            classifier=classifier,
        )
    )


def vgg16(classes: int = 10, *, batch_norm: bool = False) -> nn.Sequential:
    """13 convolutions, then 512-512-512-classes with dropout before the first two linear layers.

    15,245,130 weights in all for ten classes, or 15,253,578 with BatchNorm after each convolution.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return _cifar(STAGES_16, classes, batch_norm)


def vgg19(classes: int = 10, *, batch_norm: bool = False) -> nn.Sequential:
    """16 convolutions, then the linear layers of `vgg16`.

    20,554,826 weights in all for ten classes, or 20,565,834 with BatchNorm after each convolution.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return _cifar(STAGES_19, classes, batch_norm)


def _cifar(stages: Stages, classes: int, batch_norm: bool) -> nn.Sequential:
    classifier = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 512),
        nn.ReLU(),
        head(512, classes),
    )
    return nn.Sequential(
        OrderedDict(features=_features(stages, batch_norm), flatten=nn.Flatten(), classifier=classifier)
    )


def _features(stages: Stages, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in stages:
        for outputs in stage:
            layers.append(he_conv(inputs, outputs, 3, bias=True))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)

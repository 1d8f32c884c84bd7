"""Pre-activation ResNets for 32x32 colour images (He et al., ECCV 2016, arXiv 1603.05027); they return logits.

As in low-precision averaging (Yang et al., ICML 2019, arXiv 1904.11943), a shortcut that changes shape is one 1x1
convolution of the block's raw input.
"""

from collections import OrderedDict
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from weightbank.zoo.layers import he_conv, head


def preresnet20(classes: int = 10) -> nn.Sequential:
    """Three stages of three `BasicBlock`s, 16, 32 and 64 channels: 272,282 weights in all for ten classes.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return _preresnet(BasicBlock, 3, (16, 32, 64), classes)


def preresnet164(classes: int = 10) -> nn.Sequential:
    """Three stages of 18 `Bottleneck`s, 64, 128 and 256 channels: 1,703,258 weights in all for ten classes.

    Raises:
        LayoutError: `classes` is not positive.
    """
    return _preresnet(Bottleneck, 18, (64, 128, 256), classes)


class BasicBlock(nn.Module):
    """bn1 - ReLU - conv1 (3x3) - bn2 - ReLU - conv2 (3x3), plus the input."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = he_conv(inputs, outputs, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = he_conv(outputs, outputs, 3)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """Return f(x) + shortcut(x); height and width are divided by the stride, rounded up."""
        y: Tensor = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.relu2(self.bn2(y)))
        shortcut: Tensor = self.downsample(x)
        return y + shortcut


class Bottleneck(nn.Module):
    """bn1 - ReLU - conv1 (1x1) - bn2 - ReLU - conv2 (3x3) - bn3 - ReLU - conv3 (1x1), plus the input.

    The two inner layers have a quarter of the `outputs`, which must be a multiple of 4.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        width = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = he_conv(inputs, width, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = he_conv(width, width, 3, stride=stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.conv3 = he_conv(width, outputs, 1)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """Return f(x) + shortcut(x); height and width are divided by the stride, rounded up."""
        y: Tensor = self.conv1(self.relu1(self.bn1(x)))
        y = self.conv2(self.relu2(self.bn2(y)))
        y = self.conv3(self.relu3(self.bn3(y)))
        shortcut: Tensor = self.downsample(x)
        return y + shortcut


def _preresnet(
    block: Callable[[int, int, int], nn.Module], blocks: int, channels: tuple[int, ...], classes: int
) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [("conv1", he_conv(3, 16, 3))]
    inputs = 16
    for stage, outputs in enumerate(channels, start=1):
        first = block(inputs, outputs, 1 if stage == 1 else 2)
        rest = [block(outputs, outputs, 1) for _ in range(blocks - 1)]
        layers.append((f"layer{stage}", nn.Sequential(first, *rest)))
        inputs = outputs
    layers += [("bn", nn.BatchNorm2d(inputs)), ("relu", nn.ReLU()), ("avgpool", nn.AvgPool2d(8))]
    layers += [("flatten", nn.Flatten()), ("fc", head(inputs, classes))]
    return nn.Sequential(OrderedDict(layers))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(he_conv(inputs, outputs, 1, stride=stride))

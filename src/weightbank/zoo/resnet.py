"""ResNet-18 for small images (He et al., CVPR 2016, arXiv 1512.03385): a 3x3 stem of stride 1, no pooling after it."""

from collections import OrderedDict
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from weightbank.zoo.layers import he_conv, head


def resnet18(classes: int = 10) -> nn.Sequential:
    """Four stages of two blocks, 64, 128, 256 and 512 channels; maps colour images of any size to logits.

    11,164,352 weights, 10 biases and 9,600 BatchNorm parameters for ten classes (CIFAR-10); 11,261,632 weights, 200
    biases and the same 9,600 for 200 (Tiny ImageNet). Names and order of the parameters are torchvision's.

    Raises:
        LayoutError: `classes` is not positive.
    """
    layers: list[tuple[str, nn.Module]] = [("conv1", he_conv(3, 64, 3)), ("bn1", nn.BatchNorm2d(64))]
    layers.append(("relu", nn.ReLU()))
    for stage, (inputs, outputs) in enumerate(pairwise((64, 64, 128, 256, 512)), start=1):
        first = BasicBlock(inputs, outputs, stride=1 if stage == 1 else 2)
        layers.append((f"layer{stage}", nn.Sequential(first, BasicBlock(outputs, outputs))))
    layers += [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", head(512, classes))]
    return nn.Sequential(OrderedDict(layers))


class BasicBlock(nn.Module):
    """conv1 - bn1 - ReLU - conv2 - bn2, plus the input (through a 1x1 convolution where the shape changes), - ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = he_conv(inputs, outputs, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = he_conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(he_conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        """Return max(0, f(x) + shortcut(x)); height and width are divided by the stride, rounded up."""
        y: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.downsample(x))
        return out

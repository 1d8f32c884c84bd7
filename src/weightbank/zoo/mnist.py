"""The four MNIST networks of non-volatile-memory SWAG (Wood et al., HPEC 2021, arXiv 2202.10522).

All use ReLU, return log-probabilities of 10 classes for `F.nll_loss`, and take pixels in [0, 1].
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from weightbank.errors import LayoutError


def model_2conv2fc() -> nn.Module:
    """21,840 weights: two 5x5 convolutions of 10 and 20 channels, then 320-50-10; with dropout."""
    return ConvNet()


def model_2fc() -> nn.Module:
    """795,010 weights: 784-1000-10."""
    return FullyConnected(784, 1000, 10)


def model_3fc() -> nn.Module:
    """1,290,510 weights: 784-1000-500-10."""
    return FullyConnected(784, 1000, 500, 10)


def model_4fc() -> nn.Module:
    """2,797,010 weights: 784-1000-1000-1000-10."""
    return FullyConnected(784, 1000, 1000, 1000, 10)


class ConvNet(nn.Module):
    """conv1 - pool - ReLU - conv2 - dropout - pool - ReLU - fc1 - ReLU - dropout - fc2 - log_softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d(0.5)
        self.fc1 = nn.Linear(320, 50)
        self.fc1_drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Float[Tensor, "N 1 28 28"]) -> Float[Tensor, "N 10"]:
        """Return log-probabilities; dropout acts in training mode only."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = self.fc1_drop(F.relu(self.fc1(x.flatten(1))))
        return F.log_softmax(self.fc2(x), dim=-1)


class FullyConnected(nn.Module):
    """Linear layers `fc1`, `fc2`, ... of the given sizes, ReLU between them, log_softmax at the end."""

    def __init__(self, *sizes: int) -> None:
        """Raises LayoutError unless there are at least two sizes, all positive."""
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise LayoutError(f"a fully connected network needs two or more positive sizes, not {sizes}")
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))

    def forward(self, x: Float[Tensor, "N *D"]) -> Float[Tensor, "N C"]:
        """Return log-probabilities of flat inputs or images, (N, 784) or (N, 1, 28, 28) alike."""
        x = x.flatten(1)
        *hidden, last = self.children()
        for layer in hidden:
            x = F.relu(layer(x))
        return F.log_softmax(last(x), dim=-1)

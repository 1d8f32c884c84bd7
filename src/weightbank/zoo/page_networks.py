"""The small networks of neural weight virtualization (Lee and Nirjon, MobiSys 2020), from one short description.

Each is a row of convolutions without padding, every one followed by LeakyReLU(0.2) and a 2x2 pool, and a row of dense
layers; the last layer's outputs are logits.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from weightbank.errors import LayoutError


@dataclass(frozen=True)
class PageNetwork:
    """What one of these networks is made of; `build()` makes it.

    Args:
        shape: channels, height and width of an input.
        convolutions: kernel height, kernel width and output channels of each, in order.
        dense: sizes of the dense layers, the number of classes last.
        hidden: what follows every dense layer but the last.
        unit_norm: True = each input is divided by its Euclidean norm first.

    Raises:
        LayoutError: no dense layer, a size that is not positive, or an input too small for the convolutions.

    >>> PAGE_NETWORKS["mnist"].size
    45706
    """

    shape: tuple[int, int, int]
    convolutions: tuple[tuple[int, int, int], ...]
    dense: tuple[int, ...]
    hidden: Literal["leaky_relu", "sigmoid"] = "leaky_relu"
    unit_norm: bool = False

    def __post_init__(self) -> None:
        sizes = [*self.shape, *(size for kernel in self.convolutions for size in kernel), *self.dense]
        if not self.dense or min(sizes) < 1:
            raise LayoutError(f"{self}: wanted positive sizes and at least one dense layer, the classes")
        _, height, width = self.features
        if min(height, width) < 1:
            raise LayoutError(
                f"an input of {self.shape[1]} x {self.shape[2]} leaves {height} x {width} after the convolutions "
                f"{self.convolutions} and their pools; wanted at least 1 x 1: take a larger input or fewer of them"
            )

    @property
    def features(self) -> tuple[int, int, int]:
        """Channels, height and width after the last pool."""
        channels, height, width = self.shape
        for kernel_height, kernel_width, outputs in self.convolutions:
            channels, height, width = outputs, (height - kernel_height + 1) // 2, (width - kernel_width + 1) // 2
        return channels, height, width

    @property
    def size(self) -> int:
        """P, the number of weights and biases."""
        return sum(math.prod(weight) + weight[-1] for weight, _ in _layers(self))

    def build(self) -> nn.Sequential:
        """Return the network with fresh weights: (N, channels, height, width) -> logits (N, classes).

        Its parameters are `conv1.weight`, `conv1.bias`, ..., `fc1.weight`, `fc1.bias`, ...; it has no buffers.
        """
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.unit_norm:
            layers["unit_norm"] = UnitNorm()
        channels = self.shape[0]
        for number, (height, width, outputs) in enumerate(self.convolutions, start=1):
            layers[f"conv{number}"] = nn.Conv2d(channels, outputs, (height, width))
            layers[f"conv{number}_leaky_relu"] = nn.LeakyReLU(0.2)
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels = outputs
        layers["flatten"] = nn.Flatten()
        inputs = math.prod(self.features)
        for number, outputs in enumerate(self.dense, start=1):
            layers[f"fc{number}"] = nn.Linear(inputs, outputs)
            if number < len(self.dense):
                layers[f"fc{number}_{self.hidden}"] = nn.LeakyReLU(0.2) if self.hidden == "leaky_relu" else nn.Sigmoid()
            inputs = outputs
        return nn.Sequential(layers)


_KERNELS_8_16_32 = ((3, 3, 8), (3, 3, 16), (3, 3, 32))
_KERNELS_4_8_16 = ((3, 3, 4), (3, 3, 8), (3, 3, 16))

PAGE_NETWORKS: Mapping[str, PageNetwork] = MappingProxyType(
    {
        "mnist": PageNetwork((1, 28, 28), _KERNELS_8_16_32, (128, 256, 10)),
        "gsc": PageNetwork((1, 61, 13), ((12, 6, 8), (6, 3, 16)), (128, 256, 35), unit_norm=True),
        "gtsrb": PageNetwork((1, 32, 32), _KERNELS_8_16_32, (128, 256, 43), unit_norm=True),
        "cifar10": PageNetwork((3, 32, 32), _KERNELS_4_8_16, (128, 256, 10)),
        "svhn": PageNetwork((3, 32, 32), _KERNELS_4_8_16, (128, 256, 10)),
        "us8k": PageNetwork((2, 60, 41), _KERNELS_8_16_32, (124, 10)),
        "fmnist": PageNetwork((1, 28, 28), ((3, 3, 24), (3, 3, 32), (3, 3, 52)), (256, 128, 10)),
        "hhar": PageNetwork((1, 20, 120), ((3, 3, 8), (3, 3, 32), (2, 3, 64)), (60, 6), hidden="sigmoid"),
        "esc10": PageNetwork((2, 60, 41), ((12, 6, 8), (3, 3, 16), (3, 3, 32)), (128, 64, 10), hidden="sigmoid"),
        "obs": PageNetwork((1, 45, 80), ((12, 24, 8), (3, 3, 32), (3, 3, 32)), (128, 128, 4)),
        "signs": PageNetwork((3, 32, 32), _KERNELS_8_16_32, (128, 256, 43)),
        "spoken": PageNetwork((1, 61, 20), ((12, 6, 8), (6, 3, 16)), (96, 128, 10)),
    }
)
"""Name -> description. The first ten are published, in the order in which the published evaluation adds them; `signs`
(traffic signs in colour) and `spoken` (spoken digits, log-mel spectrograms of `weightbank.data.audio`) are of the same
family and have no published weights."""

PUBLISHED = ("mnist", "gsc", "gtsrb", "cifar10", "svhn", "us8k", "fmnist", "hhar", "esc10", "obs")
"""The ten published networks: 607,792 weights in all, 72,012 in the largest."""


class UnitNorm(nn.Module):
    """Divides each example by its Euclidean norm; one of zeros stays zero."""

    def forward(self, x: Float[Tensor, "N *D"]) -> Float[Tensor, "N *D"]:
        """Return x / |x| for each of the N examples."""
        norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        return x / norm.view(-1, *[1] * (x.ndim - 1))


class Layer(NamedTuple):
    """One layer of a published file: its weight's shape, and how that becomes this library's."""

    weight: tuple[int, ...]
    features: tuple[int, int, int] | None  # height, width and channels of the input that a dense layer flattens


def published_order(network: PageNetwork) -> Int64[Tensor, " P"]:
    """Return where each weight of this library stands in a published flat vector: θ = published[order], shape (P,).

    Published vectors hold the same tensors in the same order, but convolutions as (height, width, in, out), dense
    weights as (in, out), and the features that enter the first dense layer as (height, width, channels) instead of
    (channels, height, width).
    """
    parts: list[Tensor] = []
    offset = 0
    for weight, features in _layers(network):
        place = torch.arange(offset, offset + math.prod(weight)).view(weight)
        if features is not None:
            place = place.view(*features, weight[-1])
        parts.append(place.permute(3, 2, 0, 1).flatten() if place.ndim == 4 else place.T.flatten())
        offset += math.prod(weight)
        parts.append(torch.arange(offset, offset + weight[-1]))
        offset += weight[-1]
    return torch.cat(parts)


def published_shapes(network: PageNetwork) -> list[tuple[int, ...]]:
    """Shapes of the tensors of a published file: weight, bias, weight, bias, ..."""
    return [shape for weight, _ in _layers(network) for shape in (weight, weight[-1:])]


def _layers(network: PageNetwork) -> Iterator[Layer]:
    channels = network.shape[0]
    for height, width, outputs in network.convolutions:
        yield Layer((height, width, channels, outputs), None)
        channels = outputs
    channels, height, width = network.features
    inputs = channels * height * width
    for number, outputs in enumerate(network.dense):
        yield Layer((inputs, outputs), (height, width, channels) if number == 0 else None)
        inputs = outputs

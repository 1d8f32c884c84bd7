"""Small networks by name, each a plain `nn.Module` with fresh weights.

>>> MODELS["model_2fc"]().fc1.weight.shape
torch.Size([1000, 784])
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from weightbank.errors import LayoutError
from weightbank.zoo.mnist import ConvNet, FullyConnected, model_2conv2fc, model_2fc, model_3fc, model_4fc
from weightbank.zoo.small import mlp, small_cnn

__all__ = [
    "MODELS",
    "ConvNet",
    "FullyConnected",
    "build",
    "mlp",
    "model_2conv2fc",
    "model_2fc",
    "model_3fc",
    "model_4fc",
    "small_cnn",
]

MODELS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "model_2conv2fc": model_2conv2fc,
        "model_2fc": model_2fc,
        "model_3fc": model_3fc,
        "model_4fc": model_4fc,
        "mlp_digits": partial(mlp, 64, 64, 10),
        "cnn_digits": partial(small_cnn, channels=1, size=8),
        "cnn_mnist": partial(small_cnn, channels=1, size=28),
        "cnn_cifar10": partial(small_cnn, channels=3, size=32),
    }
)
"""Name -> builder. A name fixes the input: `model_*` and `*_mnist` take 28x28 grey images, `*_digits` 8x8 grey ones,
`*_cifar10` 32x32 colour ones. `model_*` return log-probabilities, the others logits; `F.cross_entropy` suits both."""


def build(name: str) -> nn.Module:
    """Return a new network of that name, its weights drawn from torch's default generator.

    Raises:
        LayoutError: no model has this name; the message lists those there are.

    >>> sum(weight.numel() for weight in build("model_2conv2fc").parameters())
    21840
    """
    try:
        builder = MODELS[name]
    except KeyError:
        raise LayoutError(f"no model is called {name!r}; take one of {', '.join(MODELS)}") from None
    return builder()

"""Networks by name, each a plain `nn.Module` with fresh weights.

>>> MODELS["model_2fc"]().fc1.weight.shape
torch.Size([1000, 784])
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from weightbank.errors import LayoutError
from weightbank.zoo.densenet import densenet121
from weightbank.zoo.lenet import convnet, lenet, mlp3, mlp4
from weightbank.zoo.mnist import ConvNet, FullyConnected, model_2conv2fc, model_2fc, model_3fc, model_4fc
from weightbank.zoo.page_files import load_page_network, read_page_vector
from weightbank.zoo.page_networks import PAGE_NETWORKS, PUBLISHED, PageNetwork
from weightbank.zoo.preresnet import preresnet20, preresnet164
from weightbank.zoo.published import load_published
from weightbank.zoo.resnet import resnet18
from weightbank.zoo.small import mlp, small_cnn
from weightbank.zoo.vgg import vgg11, vgg16, vgg19

__all__ = [
    "MODELS",
    "PAGE_NETWORKS",
    "PUBLISHED",
    "ConvNet",
    "FullyConnected",
    "PageNetwork",
    "build",
    "convnet",
    "densenet121",
    "lenet",
    "load_page_network",
    "load_published",
    "mlp",
    "mlp3",
    "mlp4",
    "model_2conv2fc",
    "model_2fc",
    "model_3fc",
    "model_4fc",
    "preresnet20",
    "preresnet164",
    "read_page_vector",
    "resnet18",
    "small_cnn",
    "vgg11",
    "vgg16",
    "vgg19",
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
        "mlp3_mnist": mlp3,
        "mlp4_mnist": mlp4,
        "lenet_mnist": lenet,
        "convnet_cifar10": convnet,
        "resnet18_cifar10": resnet18,
        "resnet18_tiny_imagenet": partial(resnet18, classes=200),
        "vgg11_tiny_imagenet": partial(vgg11, classes=200),
        "densenet121_cifar10": densenet121,
        "vgg16_cifar10": vgg16,
        "vgg16bn_cifar10": partial(vgg16, batch_norm=True),
        "vgg19_cifar10": vgg19,
        "vgg19bn_cifar10": partial(vgg19, batch_norm=True),
        "preresnet20_cifar10": preresnet20,
        "preresnet164_cifar10": preresnet164,
        "vgg16_cifar100": partial(vgg16, 100),
        "vgg16bn_cifar100": partial(vgg16, 100, batch_norm=True),
        "vgg19_cifar100": partial(vgg19, 100),
        "vgg19bn_cifar100": partial(vgg19, 100, batch_norm=True),
        "preresnet20_cifar100": partial(preresnet20, 100),
        "preresnet164_cifar100": partial(preresnet164, 100),
        **{f"pages_{name}": network.build for name, network in PAGE_NETWORKS.items()},
    }
)
"""Name -> builder. A name fixes the input: `model_*` and `*_mnist` take 28x28 grey images, `*_digits` 8x8 grey ones,
`*_cifar10` and `*_cifar100` 32x32 colour ones, `*_tiny_imagenet` 64x64 colour ones with 200 classes. `model_*` return
log-probabilities, the others logits; `F.cross_entropy` suits both. `pages_*` are the networks described in
`PAGE_NETWORKS`, which gives the shape of their inputs."""


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

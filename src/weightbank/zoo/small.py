"""A multilayer perceptron and a small convolutional network for examples; both return logits."""

from itertools import pairwise

from torch import nn

from weightbank.errors import LayoutError


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers of the given sizes with ReLU between them; the input is flattened, the output are logits.

    Raises:
        LayoutError: fewer than two sizes, or one that is not positive.

    >>> sum(weight.numel() for weight in mlp(64, 32, 10).parameters())  # 64*32 + 32 + 32*10 + 10
    2410
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise LayoutError(f"mlp needs two or more positive sizes, as mlp(64, 32, 10), not mlp{sizes}")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_cnn(channels: int = 1, size: int = 28, classes: int = 10, batch_norm: bool = True) -> nn.Sequential:
    """Return 3x3 convolutions of 16, 32 and 48 channels, pooled twice, and one linear layer.

    Maps images (N, channels, size, size) to logits (N, classes). 42,298 weights for MNIST (1, 28), 49,786 for CIFAR-10
    (3, 32), 20,698 for digits (1, 8). With `batch_norm` each convolution is followed by BatchNorm and has no bias, so
    the network carries buffers besides its weights.

    Raises:
        LayoutError: `size` below 4 leaves nothing after two poolings, or a count is not positive.
    """
    if size < 4 or channels < 1 or classes < 1:
        raise LayoutError(
            f"small_cnn needs size >= 4, channels >= 1 and classes >= 1, not size={size}, channels={channels}, "
            f"classes={classes}"
        )
    return nn.Sequential(
        *_block(channels, 16, batch_norm),
        nn.MaxPool2d(2),
        *_block(16, 32, batch_norm),
        nn.MaxPool2d(2),
        *_block(32, 48, batch_norm),
        nn.Flatten(),
        nn.Linear(48 * (size // 4) ** 2, classes),
    )


def _block(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=not batch_norm)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [convolution, nn.ReLU()]

"""Training images cropped and flipped at random, anew in each pass, and normalised as CIFAR networks are trained."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from weightbank.task import Task, TensorBatches


class CroppedFlipped:
    """The batches of images, each a random crop of itself with a border of zeros, mirrored half of the time.

    All draws come from the batches' own generator, so that a resumed run repeats them.
    """

    def __init__(self, batches: TensorBatches, border: int = 4) -> None:
        self.batches, self.border, self.generator = batches, border, batches.generator

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            yield cropped_flipped(x, self.border, self.generator), y


def cropped_flipped(x: Float[Tensor, "N C H W"], border: int, generator: torch.Generator) -> Float[Tensor, "N C H W"]:
    """Each image moved by up to `border` pixels each way, zeros coming in, and mirrored with probability 1/2."""
    count, channels, height, width = x.shape
    moves = torch.randint(0, 2 * border + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, -1)
    columns = torch.where(mirrored, columns.flip(1), columns) + moves[1]
    rows = torch.arange(height) + moves[0]
    padded = F.pad(x, (border,) * 4)
    images = torch.arange(count)[:, None, None, None]
    return padded[images, torch.arange(channels)[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def normalise(task: Task) -> None:
    """Shift and scale each channel of the task's images, in place, by mean and deviation of the training images."""
    assert isinstance(task.train, TensorBatches)
    assert isinstance(task.test, TensorBatches)
    deviation, mean = torch.std_mean(task.train.x, dim=(0, 2, 3), keepdim=True)
    for batches in (task.train, task.test):
        batches.x = batches.x.sub_(mean).div_(deviation.clamp(min=1e-6))

"""A normal law and a small classification problem for the tests next door."""

import torch

from weightbank.layout import Layout


class Diagonal:
    """A normal law with independent weights, drawn at once."""

    def __init__(self, mean: torch.Tensor, std: float, layout: Layout) -> None:
        self._mean, self.std, self.layout = mean, std, layout

    def mean(self):
        return self._mean

    def variance(self):
        return torch.full_like(self._mean, self.std**2)

    def sample(self, count, *, generator=None):
        return self._mean + self.std * torch.randn(count, len(self._mean), generator=generator)


class Streamed(Diagonal):
    """The same draws one at a time, each overwriting the last, as the contract of `draws` allows."""

    def draws(self, count, *, generator=None):
        theta = torch.empty_like(self._mean)
        for row in self.sample(count, generator=generator):
            yield theta.copy_(row)
        theta.fill_(torch.nan)


def gaussian_blobs(n: int, seed: int, classes: int = 3, features: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 0.7 * torch.randn(n, features, generator=generator), labels

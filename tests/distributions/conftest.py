from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightbank.layout import Entry, Layout


@pytest.fixture
def layout_of() -> Callable[[int], Layout]:
    return lambda size: Layout((Entry("w", (size,), 0, torch.float32),))


@pytest.fixture
def iterates_of() -> Callable[[int, int], list[Tensor]]:
    """A random walk around a random point: correlated iterates as SGD makes them, 100 times below the weights."""

    def make(count: int, size: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(count * 1000 + size)
        center = torch.randn(size, generator=generator)
        offset = torch.zeros(size)
        made = []
        for _ in range(count):
            offset = 0.9 * offset + 0.01 * torch.randn(size, generator=generator)
            made.append(center + offset)
        return made

    return make

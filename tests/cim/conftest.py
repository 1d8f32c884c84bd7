import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weightbank.layout import Layout
from weightbank.task import Task


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    centres = 1.5 * torch.randn(4, 6, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 0.8 * torch.randn(n, 6, generator=generator), labels


@pytest.fixture(scope="session")
def trained() -> Task:
    """Four blobs in six dimensions and a network of 224 weights that tells them apart; do not change it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    task = Task("blobs", model, F.cross_entropy, blobs(400, 1), blobs(600, 2), batch_size=50)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(8):
        for x, y in task.batches("train"):
            optimizer.zero_grad()
            task.loss(model(x), y).backward()
            optimizer.step()
    return task


@pytest.fixture
def layout() -> Layout:
    """A kernel, a bias, a matrix and a norm's parameters: 24 + 4 + 15 + 3 weights."""
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 4, (1, 3)), "fc": nn.Linear(5, 3, bias=False), "norm": nn.RMSNorm(3)})
    return Layout.of(model)


@pytest.fixture
def theta(layout: Layout) -> torch.Tensor:
    theta = torch.randn(layout.size, generator=torch.Generator().manual_seed(5))
    theta[3] = 0.0
    return theta

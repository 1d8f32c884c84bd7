import pytest
import torch
from evaluation_laws import Diagonal, gaussian_blobs
from torch import nn
from torch.nn import functional as F

from weightbank.task import Task


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    return Task("blobs", model, F.cross_entropy, gaussian_blobs(60, 1), gaussian_blobs(101, 2), batch_size=32)


@pytest.fixture
def law(task: Task) -> Diagonal:
    return Diagonal(task.theta(), 0.3, task.layout)

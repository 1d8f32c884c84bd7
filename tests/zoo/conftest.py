from collections.abc import Callable

import pytest
from torch import nn


@pytest.fixture
def grouped() -> Callable[[nn.Module], tuple[int, int, int]]:
    """Count a model's parameters: those a device holds, biases, and those of BatchNorm."""

    def count(model: nn.Module) -> tuple[int, int, int]:
        norms = [
            parameter
            for part in model.modules()
            if "BatchNorm" in type(part).__name__
            for parameter in part.parameters()
        ]
        norm = sum(parameter.numel() for parameter in norms)
        everything = list(model.parameters())
        device = sum(parameter.numel() for parameter in everything if parameter.ndim >= 2)
        assert all(parameter.ndim == 1 for parameter in norms)
        return device, sum(parameter.numel() for parameter in everything) - device - norm, norm

    return count

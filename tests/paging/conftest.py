import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

NETWORKS = ("mnist", "gsc", "gtsrb", "cifar10", "svhn")


@pytest.fixture
def published_networks() -> tuple[list[torch.Tensor], list[torch.Tensor], list[list[int]]]:
    """Weights, Fisher and tensor sizes of the five original networks, in the published order; skips without them."""
    place = os.environ.get("WEIGHTBANK_DATA")
    root = (Path(place) if place else Path(__file__).parents[3] / "shared" / "data") / "pages"
    weights, fishers, sizes = [], [], []
    for name in NETWORKS:
        path = root / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"no real data: pages/{name}.npz is not below WEIGHTBANK_DATA")
        with np.load(path, allow_pickle=False) as stored:
            weights.append(torch.from_numpy(stored["flat_weight"]))
            fishers.append(torch.from_numpy(stored["flat_fisher"]))
            sizes.append([int(np.prod([int(n) for n in shape.split(",")])) for shape in stored["shapes"]])
    return weights, fishers, sizes


@pytest.fixture
def uneven() -> Callable[..., torch.Tensor]:
    """Importances as uneven as those of trained networks: over twelve powers of ten."""

    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        return 10 ** (12 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 10)

    return draw


@pytest.fixture
def normal() -> Callable[..., torch.Tensor]:
    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return draw

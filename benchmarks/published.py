"""The rival: the published out-of-core SWAG layout (arXiv 2202.10522), an (n, K) numpy memmap written by column."""

from pathlib import Path

import numpy as np


class PublishedPosterior:
    """mu, second moment and D_hat (n, K) in mapped files; a dozen lines, as published apart from correct statistics."""

    def __init__(self, n: int, rows: int, path: Path) -> None:
        def new(name: str, *shape: int) -> np.memmap:
            return np.memmap(path / name, np.float32, "w+", shape=shape)

        self.mu, self.square, self.deviations = new("mu", n, 1), new("sec", n, 1), new("D_hat", n, rows)
        self.index = self.count = 0

    def update(self, theta: np.ndarray, *, durable: bool = False) -> None:
        self.mu += theta
        self.square += theta**2
        self.count += 1
        self.deviations[:, self.index] = (theta - self.square / self.count)[:, 0]
        self.index = (self.index + 1) % self.deviations.shape[1]
        if durable:
            for array in (self.mu, self.square, self.deviations):
                array.flush()

    def sample(self, generator: np.random.Generator) -> np.ndarray:
        n, rows = self.deviations.shape
        variance = np.maximum(self.square / self.count - (self.mu / self.count) ** 2, 0)
        draw = self.mu / self.count + np.sqrt(variance) * generator.standard_normal((n, 1)) / np.sqrt(2)
        return draw + self.deviations.dot(generator.standard_normal((rows, 1))) / np.sqrt(2 * (rows - 1))

"""A low-rank factor U = C X + b c' of shape (R, P): a small matrix in front of the stored rows X.

Every choice of deviations, window, thinning or compression changes only C (R, K), b (R,) and the one vector c (P,);
the rows X (K, P) stay where they are. C is never formed where a cumulative sum does its work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.distributions.sources import RowSource
from weightbank.errors import CapacityError
from weightbank.types import Flat

TILE = 16_384
_BLOCK_BYTES, _MOST_ROWS = 48 << 20, 16_384


@runtime_checkable
class Weights(Protocol):
    """The small matrix (C, b)."""

    @property
    def rank(self) -> int:
        """R, the rows of U."""
        ...

    def pull(self, z: Float[Tensor, "S R"]) -> tuple[Float[Tensor, "S K"], Float[Tensor, " S"]]:
        """(z C, z b): what a combination of U's rows is in terms of X's rows and c."""
        ...

    def push(self, x: Float[Tensor, "K W"], centre: Float[Tensor, " W"]) -> Float[Tensor, "R W"]:
        """C x + b centre', a block of columns of U; may overwrite `x`."""
        ...


@dataclass(frozen=True)
class Running:
    """Deviations from the running mean, e_i = scale (θ_i - mean of θ_1..θ_i), the rows that SWAG keeps.

    `first` is the number (from 1) of the first row in the collection of `total` iterates. From the first on, rows are
    X_i = θ_i - ref alone: e = (I - L) X with L_ij = 1/i. A later window needs c = mean - ref as well:
    e_i = X_i - (total c - Σ_{j>i} X_j) / i, going back from the final mean.
    """

    count: int
    first: int
    total: int
    scale: float

    @property
    def rank(self) -> int:
        return self.count

    def pull(self, z: Float[Tensor, "S R"]) -> tuple[Float[Tensor, "S K"], Float[Tensor, " S"]]:
        share = z / self._numbers(z)
        if self.first == 1:
            later = share.flip(1).cumsum(1).flip(1)
            return self.scale * (z - later), z.new_zeros(z.shape[0])
        earlier = share.cumsum(1) - share
        return self.scale * (z + earlier), -self.scale * self.total * share.sum(1)

    def push(self, x: Float[Tensor, "K W"], centre: Float[Tensor, " W"]) -> Float[Tensor, "R W"]:
        mean = torch.zeros_like(centre)
        if self.first > 1:
            before = self.total * centre - x.sum(0)
            mean = before.div_(self.first - 1)
        for number, row in enumerate(x, self.first):
            mean.lerp_(row, 1 / number)
            row.sub_(mean)
        return x.mul_(self.scale)

    def _numbers(self, like: Tensor) -> Tensor:
        return torch.arange(self.first, self.first + self.count, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Centred:
    """Deviations from the final mean, scale (θ_i - mean); c = mean - ref."""

    count: int
    scale: float

    @property
    def rank(self) -> int:
        return self.count

    def pull(self, z: Float[Tensor, "S R"]) -> tuple[Float[Tensor, "S K"], Float[Tensor, " S"]]:
        return self.scale * z, -self.scale * z.sum(1)

    def push(self, x: Float[Tensor, "K W"], centre: Float[Tensor, " W"]) -> Float[Tensor, "R W"]:
        return x.sub_(centre).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class Dense:
    """Any matrix C (R, K) and vector b (R,), float64."""

    matrix: Float[Tensor, "R K"]
    offset: Float[Tensor, " R"]

    @property
    def rank(self) -> int:
        return self.matrix.shape[0]

    def pull(self, z: Float[Tensor, "S R"]) -> tuple[Float[Tensor, "S K"], Float[Tensor, " S"]]:
        return z @ self.matrix.to(z.dtype), z @ self.offset.to(z.dtype)

    def push(self, x: Float[Tensor, "K W"], centre: Float[Tensor, " W"]) -> Float[Tensor, "R W"]:
        return torch.addr(self.matrix.to(x.dtype) @ x, self.offset.to(x.dtype), centre)


@dataclass(frozen=True)
class Scaled:
    """The rows as they are, times a number."""

    count: int
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.count

    def pull(self, z: Float[Tensor, "S R"]) -> tuple[Float[Tensor, "S K"], Float[Tensor, " S"]]:
        return self.scale * z, z.new_zeros(z.shape[0])

    def push(self, x: Float[Tensor, "K W"], centre: Float[Tensor, " W"]) -> Float[Tensor, "R W"]:
        return x.mul_(self.scale)


@dataclass(frozen=True, eq=False)
class Factor:
    """U = C X + b c', shape (R, P)."""

    rows: RowSource
    weights: Weights
    centre: Flat

    @property
    def rank(self) -> int:
        """R."""
        return self.weights.rank

    @property
    def size(self) -> int:
        """P."""
        return self.rows.size

    def blocks(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Float[Tensor, "R W"]]]:
        """U by blocks of columns; each row is read once in all; about 100 MB whatever K and P."""
        width = TILE
        while width > 64 and width * self.rows.count * (4 + 2 * dtype.itemsize) > _BLOCK_BYTES:
            width //= 2
        buffer = torch.empty(self.rows.count * min(width, self.size))
        for start in range(0, self.size, width):
            columns = slice(start, min(start + width, self.size))
            x = buffer[: self.rows.count * (columns.stop - columns.start)].view(self.rows.count, -1)
            self.rows.read(slice(None), columns, x)
            yield columns, self.weights.push(x.to(dtype), self.centre[columns].to(dtype))

    def gram(self, dtype: torch.dtype = torch.float64) -> Float[Tensor, "R R"]:
        """U U', shape (R, R), float64; products of blocks are taken in `dtype`. One pass, R² P multiplications.

        Raises `CapacityError` for more than 16,384 rows.
        """
        total = torch.zeros(check_square(self.rank), self.rank, dtype=torch.float64)
        for _, block in self.blocks(dtype):
            total += block @ block.T
        return total

    def times(self, matrix: Float[Tensor, "Q R"]) -> "Factor":
        """The factor `matrix` U, still over the same stored rows."""
        combined, offset = self.weights.pull(matrix.to(torch.float64))
        return Factor(self.rows, Dense(combined, offset), self.centre)


def check_square(rank: int) -> int:
    """`rank` itself, or `CapacityError` where a matrix of `rank` x `rank` float64 would be beyond 2 GiB."""
    if rank > _MOST_ROWS:
        raise CapacityError(
            f"{rank:,} rows need a matrix of {rank:,} x {rank:,} numbers here, {8 * rank**2 / 1e9:,.1f} GB; take at "
            f"most {_MOST_ROWS:,}: gaussian(window=...) or gaussian(thin=...), or record with keep=Sketch(...)"
        )
    return rank

"""Which weights of a tensor share a scale: all, tiles along an axis, or one block per index of some dimensions."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from weightbank.errors import FormatError


class Tiling(NamedTuple):
    """The blocks of one shape: dimensions in `order`, seen as (rows, width), every row cut into tiles.

    The last tile of a row may be shorter. Blocks are numbered row by row.
    """

    order: tuple[int, ...]
    rows: int
    width: int
    tile: int

    @property
    def in_order(self) -> bool:
        """Whether blocks follow one another in row-major order."""
        return self.order == tuple(range(len(self.order)))

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self.rows * -(-self.width // self.tile)

    def split(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "N B"]:
        """One block a row, filled up with zeros."""
        rows = x.permute(self.order).reshape(self.rows, self.width)
        if self.width % self.tile:
            rows = torch.nn.functional.pad(rows, (0, -self.width % self.tile))
        return rows.reshape(-1, self.tile)

    def join(self, blocks: Shaped[Tensor, "N B"], shape: tuple[int, ...]) -> Shaped[Tensor, "*shape"]:
        """The inverse of `split`."""
        if not math.prod(shape):
            return blocks.reshape(shape)
        rows = blocks.reshape(self.rows, -1)[:, : self.width]
        inverse = sorted(range(len(shape)), key=self.order.__getitem__)
        return rows.reshape([shape[dim] for dim in self.order]).permute(inverse)


@dataclass(frozen=True, init=False, repr=False)
class Per:
    """One block for each index of these dimensions: `Per(0)` per output channel of a weight, `Per(0, 1)` per kernel."""

    dims: tuple[int, ...]

    def __init__(self, *dims: int) -> None:
        """Raise FormatError unless `dims` are distinct whole numbers."""
        for dim in dims:
            whole("a dimension", dim, -64, 63)
        if not dims or len(set(dims)) < len(dims):
            raise FormatError(f"Per{dims} needs at least one dimension, none twice")
        object.__setattr__(self, "dims", dims)

    def __repr__(self) -> str:
        return f"Per({', '.join(map(str, self.dims))})"

    def tiling(self, shape: tuple[int, ...]) -> Tiling:
        """Raises FormatError where a dimension is missing; a 0-d tensor is one block."""
        kept = sorted({_dimension(self, dim, shape) for dim in self.dims}) if shape else []
        width = math.prod(size for dim, size in enumerate(shape) if dim not in kept)
        order = (*kept, *(dim for dim in range(len(shape)) if dim not in kept))
        return _tiling(order, shape, width, width)


@dataclass(frozen=True, repr=False)
class Tile:
    """Tiles of `size` along one axis (negative: from the last); the last tile of a line may be shorter."""

    axis: int
    size: int

    def __post_init__(self) -> None:
        """Raise FormatError for what are no whole numbers."""
        whole("axis", self.axis, -64, 63)
        whole("block", self.size, 1, 2**31)

    def __repr__(self) -> str:
        return f"Tile({self.axis}, {self.size})"

    def tiling(self, shape: tuple[int, ...]) -> Tiling:
        """Raises FormatError where the axis is missing; a 0-d tensor is one block."""
        if not shape:
            return _tiling((), shape, 1, self.size)
        axis = _dimension(self, self.axis, shape)
        order = (*(dim for dim in range(len(shape)) if dim != axis), axis)
        return _tiling(order, shape, shape[axis], self.size)


@dataclass(frozen=True, repr=False)
class ByDimensions:
    """One block for tensors of up to `whole` dimensions (biases, normalization), `others` for the rest.

    `ByDimensions()` is the "small-block" rule of SWALP (arXiv 1904.11943): one exponent per output channel of
    weights, one for each vector; `ByDimensions(2)` treats the weights of fully connected layers as vectors, too.
    """

    whole: int = 1
    others: Per | Tile = field(default_factory=lambda: Per(0))

    def __post_init__(self) -> None:
        """Raise FormatError for what is no such rule."""
        whole("whole", self.whole, 0, 64)
        if not isinstance(self.others, Per | Tile):
            raise FormatError(f"others is {self.others!r}; use blocks such as Per(0) or Tile(-1, 32)")

    def __repr__(self) -> str:
        first = [] if self.whole == 1 else [str(self.whole)]
        return f"ByDimensions({', '.join(first + ([] if self.others == Per(0) else [f'others={self.others!r}']))})"

    def tiling(self, shape: tuple[int, ...]) -> Tiling:
        """Raises FormatError where `others` does."""
        return tiling(None, shape) if len(shape) <= self.whole else self.others.tiling(shape)


Block: TypeAlias = int | Per | Tile | ByDimensions | None
"""None: the whole tensor; a number: tiles of so many along the last axis."""


def tiling(block: Block, shape: tuple[int, ...]) -> Tiling:
    """The blocks of a tensor of this shape."""
    if block is None:
        size = math.prod(shape)
        return _tiling(tuple(range(len(shape))), shape, size, size)
    return (Tile(-1, block) if isinstance(block, int) else block).tiling(shape)


def check_block(block: object) -> Block:
    """`block` if it is one, tiles of the last axis as their number; FormatError otherwise."""
    if isinstance(block, Tile) and block.axis == -1:
        return block.size
    if block is None or isinstance(block, Per | Tile | ByDimensions):
        return block
    return whole("block", block, 1, 2**31)


def whole(name: str, value: object, least: int, most: int) -> int:
    """`value` if it is a whole number in that range; FormatError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(f"{name} is {value!r}; use a whole number from {least} to {most}")
    return value


def _tiling(order: tuple[int, ...], shape: tuple[int, ...], width: int, tile: int) -> Tiling:
    return Tiling(order, math.prod(shape) // max(width, 1), width, max(1, min(width, tile)))


def _dimension(block: object, dim: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= dim < len(shape):
        raise FormatError(
            f"{block!r} needs dimension {dim}, but the tensor is {shape}; use ByDimensions() for tensors of any shape"
        )
    return dim % len(shape)

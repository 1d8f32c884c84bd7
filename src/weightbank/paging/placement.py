"""Where the weights of one tenant stand in the pool: contiguous extents, fixed pages, or some of each."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor

from weightbank.errors import LayoutError
from weightbank.types import Flat


@dataclass(frozen=True, order=True)
class Extent:
    """`length` weights of a tenant from θ[start] on, as one run from `position` of the pool on.

    Nobody else uses an exclusive one.
    """

    start: int
    position: int
    length: int
    exclusive: bool = False


@dataclass(frozen=True, eq=False)
class Placement:
    """The map θ -> pool of a tenant with `size` weights, each at one position, no position twice.

    What no extent covers follows one another in pages of `page_size` weights, the last one filled up: weight k of that
    rest stands at pages[k // page_size] * page_size + k % page_size.
    """

    size: int
    extents: tuple[Extent, ...]
    page_size: int = 1
    pages: Int[Tensor, " n"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Kept in the fewest bytes that hold them: two a page, as a rule."""
    private: Bool[Tensor, " n"] = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        object.__setattr__(self, "pages", _compact(self.pages))

    @property
    def nbytes(self) -> int:
        """Bytes of the tables: three numbers an extent, and what pages take."""
        return 12 * len(self.extents) + self.pages.nbytes + self.private.nbytes

    @cached_property
    def paged(self) -> tuple[slice, ...]:
        """The parts of θ that no extent covers."""
        parts, at = [], 0
        for extent in (*self.extents, Extent(self.size, 0, 0)):
            if extent.start > at:
                parts.append(slice(at, extent.start))
            at = extent.start + extent.length
        return tuple(parts)

    @cached_property
    def paged_size(self) -> int:
        """Weights that stand in pages."""
        return sum(part.stop - part.start for part in self.paged)

    def offset(self, start: int, length: int) -> int | None:
        """The position of θ[start], if `length` weights from there on are one run; else None."""
        for extent in self.extents:
            if extent.start <= start and start + length <= extent.start + extent.length:
                return extent.position + start - extent.start
        return None

    def runs(self, *, exclusive_only: bool = False) -> Iterator[tuple[int, int]]:
        """(position, length) of every extent and page that weights of this tenant stand on."""
        for extent in self.extents:
            if extent.exclusive or not exclusive_only:
                yield extent.position, extent.length
        left = self.paged_size
        for page, private in zip(self.pages.tolist(), self.private.tolist(), strict=True):
            if private or not exclusive_only:
                yield page * self.page_size, min(left, self.page_size)
            left -= self.page_size

    def mark(self, out: Int[Tensor, " N"], *, exclusive_only: bool = False) -> None:
        """Add 1 at each position used."""
        for position, length in self.runs(exclusive_only=exclusive_only):
            out[position : position + length] += 1

    def index(self) -> Int64[Tensor, " L"]:
        """The position of each of the L weights that stand in pages, in their order."""
        within = torch.arange(self.page_size)
        return (self.pages.long()[:, None] * self.page_size + within).reshape(-1)[: self.paged_size]

    def gather(self, memory: Tensor, out: Tensor | None = None) -> Shaped[Tensor, " P"]:
        """θ, shape (P,), read from a memory of shape (N,) of any dtype; `out` takes it in another dtype, too."""
        out = torch.empty(self.size, dtype=memory.dtype) if out is None else out
        for extent in self.extents:
            out[extent.start : extent.start + extent.length] = memory[extent.position : extent.position + extent.length]
        if len(self.pages):
            at, rest = 0, self.read_pages(memory)
            for part in self.paged:
                out[part] = rest[at : at + part.stop - part.start]
                at += part.stop - part.start
        return out

    def put(self, memory: Tensor, theta: Flat) -> None:
        """Overwrite the tenant's positions by θ."""
        for extent in self.extents:
            memory[extent.position : extent.position + extent.length] = theta[
                extent.start : extent.start + extent.length
            ]
        if len(self.pages):
            memory[self.index()] = torch.cat([theta[part] for part in self.paged]).to(memory.dtype)

    def add(self, memory: Tensor, theta: Flat) -> None:
        """Add θ to the tenant's positions."""
        for extent in self.extents:
            memory[extent.position : extent.position + extent.length] += theta[
                extent.start : extent.start + extent.length
            ]
        if len(self.pages):
            memory.index_add_(0, self.index(), torch.cat([theta[part] for part in self.paged]).to(memory.dtype))

    def check(self, positions: int) -> None:
        """Raise `LayoutError` unless all stands within `positions`, nothing twice; allocates nothing of pool size."""
        at = 0
        for extent in self.extents:
            if extent.length < 1 or extent.start < at or extent.start + extent.length > self.size:
                raise LayoutError(f"{extent} overlaps another, or leaves the {self.size:,} weights")
            at = extent.start + extent.length
        left = self.paged_size
        wanted = -(-left // self.page_size) if self.page_size >= 1 else -1
        if len(self.pages) != wanted or len(self.private) != wanted:
            raise LayoutError(f"{left:,} weights need {wanted:,} pages of {self.page_size}; {len(self.pages):,} came")
        last = positions // self.page_size
        if len(self.pages) and not 0 <= int(self.pages.min()) <= int(self.pages.max()) < last:
            raise LayoutError(f"a page outside the {last:,} of the pool: {int(self.pages.min())}..{self.pages.max()}")
        end = 0
        for position, length in sorted(self.runs()):
            if position < end or position + length > positions:
                raise LayoutError(
                    f"{length:,} weights at position {position:,} overlap others of the same network, "
                    f"or leave the {positions:,} positions"
                )
            end = position + length

    def read_pages(self, memory: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """The numbers on the pages from `first` up to `last` of the table, page after page."""
        count = len(memory) // self.page_size
        whole = memory[: count * self.page_size].view(count, self.page_size)
        return whole.index_select(0, self.pages[first:last].long()).view(-1)


def _compact(pages: Tensor) -> Tensor:
    """In 16 bits, or in 32, where all numbers fit."""
    low, high = (int(pages.min()), int(pages.max())) if len(pages) else (0, 0)
    for dtype in (torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return pages.to(dtype)
    return pages

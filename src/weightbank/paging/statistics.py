"""What the tenants of a pool want at each position, in two numbers however many they are: precision and moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from weightbank.errors import CapacityError, CurvatureError, LayoutError, NonFiniteError
from weightbank.types import Flat

Index: TypeAlias = slice | Int64[Tensor, " _n"]
Vector: TypeAlias = Float[Tensor, " _n"]  # of a length of its own
_ROUNDING = 2.0**-20  # what a subtraction leaves below this fraction is rounding: float32 sums are good to 2^-24


@dataclass
class Shared:
    """Per position of a pool the precision F = Σ importance and the moment Σ importance · w of all tenants there.

    The loss of tenant t rises by ½ Fₜ (v - wₜ)² when its weight wₜ becomes the shared v; the v that is best for all is
    moment / precision. Both are float32, shape (P,) of the pool; adding or removing a tenant touches its n positions.
    """

    precision: Flat
    moment: Flat

    @classmethod
    def empty(cls, size: int) -> "Shared":
        """A pool of `size` positions that nobody uses."""
        return cls(torch.zeros(size), torch.zeros(size))

    def add(self, index: Index, weights: Vector, importance: Vector) -> None:
        """Take a tenant's `weights` and `importance`, shape (n,), into the n distinct positions `index`, in place.

        Raises `LayoutError` for vectors of other lengths, `NonFiniteError` for NaN or infinity, `CurvatureError` for
        a negative importance; then nothing was changed.
        """
        weights, importance = self._checked(index, weights, importance)
        self.precision[index] += importance
        self.moment[index] += importance * weights

    def subtract(self, index: Index, weights: Vector, importance: Vector) -> None:
        """Take out what `add` with the same arguments took in, in place; raises as it does.

        A sum in float32 forgets what is 2^-20 times smaller than the rest: where no more than that is left, nothing
        is, and precision and moment become 0.
        """
        weights, importance = self._checked(index, weights, importance)
        before = self.precision[index]
        precision = before - importance
        moment = self.moment[index] - importance * weights
        gone = precision <= before * _ROUNDING
        self.precision[index] = precision.masked_fill_(gone, 0)
        self.moment[index] = moment.masked_fill_(gone, 0)

    def mean(self) -> Flat:
        """The best shared value of each position, moment / precision, shape (P,); 0 where nothing is wanted."""
        return torch.where(self.precision > 0, self.moment / self.precision, 0.0)

    def _checked(self, index: Index, weights: Vector, importance: Vector) -> tuple[Vector, Vector]:
        places = self.precision[index].numel()
        if weights.numel() != places:
            raise LayoutError(f"{weights.numel()} weights came for {places} of the {self.precision.numel()} positions")
        return checked(weights, importance)


def checked(weights: Vector, importance: Vector, name: str = "a tenant") -> tuple[Vector, Vector]:
    """Both as float32, shape (n,), on the CPU and without gradient.

    Raises `LayoutError` when they differ in length, `NonFiniteError` for NaN or infinity, `CurvatureError` for a
    negative importance; `name` says whose they are.
    """
    if weights.shape != importance.shape:
        raise LayoutError(f"{name} has {weights.numel()} weights and {importance.numel()} importances: one each wanted")
    weights, importance = (x.detach().to("cpu", torch.float32) for x in (weights, importance))
    for what, x in (("weights", weights), ("importances", importance)):
        if bad := int((~x.isfinite()).sum()):
            raise NonFiniteError(
                f"{bad} of {x.numel()} {what} of {name} are NaN or infinite in float32: nothing was done"
            )
    if below := int((importance < 0).sum()):
        raise CurvatureError(
            f"{below} of {importance.numel()} importances of {name} are negative, down to {float(importance.min()):g}: "
            "clamp them at 0, or take a curvature that never is, e.g. weightbank.curvature.fisher"
        )
    return weights, importance


def paged(
    weights: Sequence[Vector], importances: Sequence[Vector], *, pages: int, page_size: int
) -> list[tuple[Float32[Tensor, "_n _S"], Float32[Tensor, "_n _S"]]]:
    """Each network's weights and importances cut into pages, shapes (n, page_size); the last is filled with zeros.

    Raises `CapacityError` when a network has more than `pages` pages, else as `checked`.
    """
    if len(weights) != len(importances):
        raise LayoutError(f"{len(weights)} networks came with {len(importances)} importances: one each wanted")
    if page_size < 1 or pages < 1:
        raise CapacityError(f"a memory of {pages} pages of {page_size} weights holds nothing: both must be positive")
    cut = []
    for number, (w, f) in enumerate(zip(weights, importances, strict=True)):
        wanted = -(-w.numel() // page_size)
        if wanted > pages:
            raise CapacityError(
                f"network {number} needs {wanted} pages of {page_size} weights but the memory has {pages}: "
                f"make it {wanted} pages or larger, or share it by pages of another size"
            )
        fill = (0, wanted * page_size - w.numel())
        w, f = (nn.functional.pad(x, fill).view(wanted, page_size) for x in checked(w, f, f"network {number}"))
        cut.append((w, f))
    return cut

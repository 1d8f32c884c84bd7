"""The six quantities of training that can have a number format (SWALP, arXiv 1904.11943, Algorithm 2)."""

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from weightbank.formats import Format

Order: TypeAlias = Literal["algorithm2", "published"]
"""Of the roundings in one step; see `Precision`."""


@dataclass(frozen=True)
class Formats:
    """The formats of one module's quantities; None is full precision."""

    weights: Format | None = None
    gradients: Format | None = None
    momentum: Format | None = None
    accumulator: Format | None = None
    activations: Format | None = None
    errors: Format | None = None


QUANTITIES = tuple(field.name for field in fields(Formats))

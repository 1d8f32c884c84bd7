"""The shapes of the library: P weights, K rows, S draws, N examples, C classes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

Flat: TypeAlias = Float[Tensor, " P"]
Rows: TypeAlias = Float[Tensor, "K P"]
Draws: TypeAlias = Float[Tensor, "S P"]

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Batch: TypeAlias = tuple[Inputs, Tensor] | list[Any]
Batches: TypeAlias = Iterable[Batch]
Loss: TypeAlias = Callable[[Any, Any], Tensor]

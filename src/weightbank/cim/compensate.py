"""Writing a weight's cells one after the other, each taking up the error that was read on those before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightbank.cim.cells import READ
from weightbank.cim.ledger import Ledger

if TYPE_CHECKING:
    from weightbank.cim.written import Written


@dataclass(frozen=True)
class Compensated:
    """The A weights that came out, and the books of each cell: (row, side, ledger)."""

    weights: Float[Tensor, " A"]
    books: list[tuple[int, int, Ledger]]

"""Writing a weight's cells one after the other, each taking up the error that was read on those before it."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from weightbank.cim.cells import READ, Cells
from weightbank.cim.ledger import Ledger
from weightbank.cim.process import WriteVerify
from weightbank.cim.rule import Rule, written_cells


@dataclass(frozen=True)
class Compensated:
    """The A weights that came out, and the books of each cell: (row, side, ledger)."""

    weights: Float[Tensor, " A"]
    books: list[tuple[int, int, Ledger]]


def compensated(
    cells: Cells, process: WriteVerify, rule: Rule, places: Int64[Tensor, " A"], *, seed: int, number: int
) -> Compensated:
    """Write the weights at `places`, most significant cell first, each cell read before the next is chosen.

    The rest r of |w| / scale that later cells have to hold starts as the target. Cell i gets level ⌊r / 2^(-i m)⌋, cut
    to 0 .. 2^m - 1; with differential pairs the nearest whole number, cut to ±(2^m - 1); the last cell the rest itself.
    What is then read of it is taken from r. The range of later cells limits what they can take up, and without pairs
    they can only add. No pulse more than otherwise; one read for each cell but the last.
    """
    device, dtype = cells.device, cells.theta.dtype
    rest = cells.target()[places].clone()
    actual, books = torch.zeros_like(rest), []
    for row, place in enumerate(device.places):
        last = row == device.cells - 1
        level = rest / place
        if not last or device.quantized:
            level = level.round() if device.pairs or last else level.floor()
        level = level.clamp(-device.top if device.pairs else 0, device.top)
        error = torch.zeros_like(rest)
        for side in range(device.sides):
            part = written_cells(cells, process, rule, row, side, places, seed=seed, number=number)
            error += part.errors * (-1) ** side
            books.append((row, side, part if last else replace(part, reads=part.reads + 1)))
        actual += place * (level + error)
        if process.read_noise:
            generator = cells.stream(seed, number, READ, row)
            noise = torch.randn(len(rest), generator=generator, dtype=dtype)
            error += process.read_noise * device.sides**0.5 * noise
        rest -= place * (level + error)
    return Compensated(actual * cells.signed_scale[places], books)

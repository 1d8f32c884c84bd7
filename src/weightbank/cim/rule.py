"""What write-verify does with each cell: leave it unread, or read it and act beyond a limit, down to a tolerance."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from weightbank.cim.cells import VERIFY, WRITE, Cells
from weightbank.cim.ledger import Ledger
from weightbank.cim.process import WriteVerify
from weightbank.errors import DataError


@dataclass(frozen=True, eq=False)
class Rule:
    """One grade per weight (P,) or per cell (M, P), and what each grade means, in level steps.

    A cell of grade k is read once after the first write; if the read is beyond `limits[k]`, pulses follow until it is
    within `tolerances[k]`. Grade 0 has limit infinity: it is never read.
    """

    grades: UInt8[Tensor, "*M P"]
    limits: tuple[float, ...]
    tolerances: tuple[float, ...]

    def __post_init__(self) -> None:
        good = 1 <= len(self.limits) == len(self.tolerances) <= 256 and self.limits[0] == math.inf
        good = good and all(t > 0 and limit > 0 for limit, t in zip(self.limits, self.tolerances, strict=True))
        if not good or (self.grades.numel() and int(self.grades.max()) >= len(self.limits)):
            raise DataError(
                f"{len(self.limits)} limits and {len(self.tolerances)} tolerances came for grades up to "
                f"{int(self.grades.max())}; wanted one positive pair per grade, at most 256, the first limit infinite"
            )

    @classmethod
    def of(cls, verified: Bool[Tensor, "*M P"], process: WriteVerify) -> "Rule":
        """Verify what the mask marks, to the tolerance of `process`, and leave the rest unread."""
        return cls(verified.to(torch.uint8), (math.inf, process.tolerance), (process.tolerance,) * 2)

    @property
    def read(self) -> Bool[Tensor, "*M P"]:
        """Which weights or cells are read after the first write."""
        return self.grades > 0

    def row(self, number: int) -> UInt8[Tensor, " P"]:
        """The grades of cell `number` (from 0) of every weight."""
        return self.grades if self.grades.ndim == 1 else self.grades[number]


def written_cells(
    cells: Cells,
    process: WriteVerify,
    rule: Rule,
    row: int,
    side: int,
    places: Int64[Tensor, " K"],
    *,
    seed: int,
    number: int,
    held: Float[Tensor, " K"] | None = None,
) -> Ledger:
    """Write cell `row`, on one `side` of its pair, of the weights at `places`, and verify it as the rule says.

    held: for stuck cells their fixed error, for others NaN.
    """
    dtype, sigma = cells.theta.dtype, float(cells.device.sigma)  # type: ignore[arg-type]
    grades = rule.row(row)[places].long()
    errors = sigma * torch.randn(len(places), generator=cells.stream(seed, number, WRITE, row, side), dtype=dtype)
    if held is not None:
        errors = torch.where(held.isnan(), errors, held)
    return process.run(
        errors,
        sigma,
        limit=torch.tensor(rule.limits, dtype=dtype)[grades],
        tolerance=torch.tensor(rule.tolerances, dtype=dtype)[grades],
        stuck=None if held is None else ~held.isnan(),
        generator=cells.stream(seed, number, VERIFY, row, side),
    )

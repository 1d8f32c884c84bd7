"""The books of programming: what was written and read, per cell, and what it costs beside verifying everything."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from weightbank.errors import DataError


@dataclass(frozen=True)
class Effort:
    """Totals over cells, counted or expected.

    cells: how many were programmed.
    pulses: write pulses, the first write of each cell included.
    reads: verifying reads.
    failures: cells that ended out of tolerance.
    """

    cells: float
    pulses: float
    reads: float = 0.0
    failures: float = 0.0

    @property
    def extra(self) -> float:
        """Pulses beyond the one that every cell needs."""
        return self.pulses - self.cells

    def write_cycles(self, full: "Effort") -> float:
        """Extra pulses as a fraction of those of `full`, which verifies every cell: normalised write cycles."""
        if not full.extra > 0:
            raise DataError(f"verifying everything takes {full.extra} extra pulses: there is nothing to compare with")
        return self.extra / full.extra

    def total_write_cycles(self, full: "Effort") -> float:
        """All pulses, first writes included, as a fraction of those of `full`."""
        return self.pulses / full.pulses

    def cost(self, *, pulse: float = 1.0, read: float = 0.0) -> float:
        """A weighted sum, e.g. of energies or times per pulse and per read."""
        return pulse * self.pulses + read * self.reads

    def __add__(self, other: "Effort") -> "Effort":
        return Effort(
            self.cells + other.cells,
            self.pulses + other.pulses,
            self.reads + other.reads,
            self.failures + other.failures,
        )

    def __mul__(self, factor: float) -> "Effort":
        return Effort(factor * self.cells, factor * self.pulses, factor * self.reads, factor * self.failures)


@dataclass(frozen=True, eq=False)
class Ledger:
    """What happened to each cell of an array of any shape: full, selective, graded and in-situ programming keep one.

    errors: the value that it holds minus the one wanted, in level steps.
    pulses: write pulses, the first included; 0 where there is no cell, for digital weights.
    reads: verifying reads.
    failed: whether it was given up out of tolerance.
    """

    errors: Float[Tensor, "*cells"]
    pulses: Int32[Tensor, "*cells"]
    reads: Int32[Tensor, "*cells"]
    failed: Bool[Tensor, "*cells"]

    @classmethod
    def written_once(cls, errors: Float[Tensor, "*cells"], where: Bool[Tensor, "*#cells"] | None = None) -> "Ledger":
        """One pulse for each cell, no read; `where` (of a shape that broadcasts) says which entries are cells."""
        none = torch.zeros(errors.shape, dtype=torch.int32)
        if where is None:
            return cls(errors, torch.ones_like(none), none, none.bool())
        return cls(torch.where(where, errors, 0.0), none + where.to(torch.int32), none, none.bool())

    @property
    def effort(self) -> Effort:
        """The totals over all that was written."""
        parts = (self.pulses > 0, self.pulses, self.reads, self.failed)
        return Effort(*(float(part.sum(dtype=torch.float64)) for part in parts))

    def rewritten(self, cells: Bool[Tensor, "*cells"], errors: Float[Tensor, "*cells"]) -> "Ledger":
        """The books after one more unverified pulse to each of `cells`, which then err by their `errors`."""
        errors = torch.where(cells, errors, self.errors)
        return Ledger(errors, self.pulses + cells.to(torch.int32), self.reads, self.failed & ~cells)

    def row_pulses(self) -> Float[Tensor, " R"]:
        """The most pulses of any cell along the last axis, flattened: the time of rows that are written at once."""
        return self.pulses.reshape(-1, self.pulses.shape[-1]).amax(-1).to(torch.float32)

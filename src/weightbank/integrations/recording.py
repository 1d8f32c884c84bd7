"""Record iterates of a training loop that somebody else runs: what the callbacks of all libraries do alike."""

from pathlib import Path
from typing import Any

from torch import nn

from weightbank.distributions import Gaussian, Moments
from weightbank.distributions.keeping import Keep
from weightbank.errors import DataError, ResumeError, StoreError
from weightbank.formats import Format
from weightbank.layout import Layout, Where, trainable
from weightbank.store import RowLog
from weightbank.types import Flat


class Recording:
    """Moments, and rows if wanted, of a model's iterates: `begin` once, `take` after every optimizer step.

    Args:
        rows: a directory (or `RowLog`) for every iterate's row; None keeps mean and variance only.
        format: of the rows, if `rows` is a directory.
        keep: which rows: all, `Window(K)` or `Sketch(l)`.
        every: record every so many optimizer steps.
        start: record nothing up to this step; the average begins after it.
        where: which weights; see `Layout.of`.

    Attributes:
        moments: the `Moments`; there from `begin` on.
    """

    def __init__(
        self,
        rows: str | Path | RowLog | None = None,
        *,
        format: Format | str = "fp32",
        keep: Keep | None = None,
        every: int = 1,
        start: int = 0,
        where: Where = trainable,
    ) -> None:
        if every < 1 or start < 0:
            raise DataError(f"every={every}, start={start}; wanted every >= 1 and start >= 0")
        self.every, self.start = every, start
        self._rows, self._format, self._keep, self._where = rows, format, keep, where
        self._moments: Moments | None = None
        self._state: dict[str, Any] | None = None
        self._step = 0

    @property
    def moments(self) -> Moments:
        """What was recorded; `StoreError` before training began."""
        if self._moments is None:
            raise StoreError("nothing is recorded yet: training has not begun")
        return self._moments

    def gaussian(self, **choices: Any) -> Gaussian:
        """`moments.gaussian(...)`: the SWAG law of what was recorded."""
        return self.moments.gaussian(**choices)

    def begin(self, model: nn.Module, step: int) -> None:
        """Training of `model` begins, after optimizer step `step` (0, or that of a checkpoint).

        Raises `ResumeError` when there are rows of another run already, or the checkpoint is missing its part.
        """
        self._step = step
        if self._moments is None:
            layout, rows = Layout.of(model, where=self._where), self._rows
            if isinstance(rows, str | Path):
                rows = RowLog(rows, format=self._format)
            self._moments = Moments(layout, rows=rows, keep=self._keep)
        moments = self._moments
        if self._state is not None:
            moments.load_state_dict(self._state)
            if moments.rows is not None and moments.keep == "all":
                moments.rewind(moments.count)
                moments.load_state_dict(self._state)  # exact, where rows are rounded
            self._state = None
        elif step == 0 and moments.count:
            raise ResumeError(
                f"{moments.rows!r} holds {moments.count} iterates of an earlier run; name another directory, or "
                "resume that run from its checkpoint"
            )
        elif step > self.start and not moments.count:
            raise ResumeError(
                f"training goes on at step {step}, but no iterate since step {self.start} is known: the checkpoint "
                f"holds nothing of this recording; pass start={step} to record from here on"
            )

    def take(self, model: nn.Module, step: int) -> None:
        """The weights after optimizer step number `step`, from 1; a step that came already is left out."""
        if step <= self._step:
            return
        self._step = step
        if step > self.start and (step - self.start) % self.every == 0:
            moments = self.moments
            moments.update(moments.layout.ravel(model), step=step)

    def mean(self) -> Flat:
        """The average of all recorded iterates (SWA), shape (P,)."""
        return self.moments.mean()

    def assign_mean(self, model: nn.Module) -> None:
        """Overwrite the model's weights with the average; refresh BatchNorm with torch's `update_bn` afterwards."""
        self.moments.layout.assign(model, self.moments.mean())

    def finish(self) -> None:
        """Store everything; more may come."""
        if self._moments is not None:
            self._moments.flush()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: two vectors of P numbers and a few more; rows stay where they are."""
        return {} if self._moments is None else self._moments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there when training begins.

        Rows recorded after it are dropped, as other people's loops do not come back to the same iterates; in a window
        or a sketch they cannot be, and are checked as they come again.
        """
        self._state = dict(state) or None

"""Mean, variance and rows of training iterates, one pass, one row appended per iterate (SWAG, arXiv 1902.02476)."""

from typing import Any, Literal

import torch

from weightbank.distributions.gaussian import Gaussian
from weightbank.distributions.keeping import Keep, Sketch, Window, describe, oldest, parse, ring_rows
from weightbank.distributions.rows_factor import check_choices, factor_of, moments_of
from weightbank.distributions.sketch import check_repeats, drop_unfinished, iterate_numbers, live_rows, shrink
from weightbank.distributions.snapshots import Snapshots
from weightbank.distributions.sources import LogRows
from weightbank.distributions.welford import TOGETHER, advance, check_finite, offsets, offsets_and_moments, subtract
from weightbank.errors import CorruptError, OverwrittenError, ResumeError, StoreError
from weightbank.layout import Layout
from weightbank.store import RowLog
from weightbank.store.records import ITERATE
from weightbank.store.slots import MomentSlots
from weightbank.types import Flat

Covariance = Literal["swag", "diagonal", "sample"]
Deviations = Literal["running", "mean"]
_LOOKS = 5


class Moments:
    """Running moments of the iterates θ_1..θ_t of a training run, and their rows θ_i - θ_1 on a log.

    Args:
        layout: which weight stands where.
        rows: where to keep the rows; None keeps mean and variance only. A log that exists is continued: `count` goes
            on from what it holds. Of one opened with read_only=True, every result is of what its writer has recorded by
            then.
        keep: "all" iterates (default), `Window(K)` the newest K, or `Sketch(l)`; a log that exists keeps its own.
        variance: False to save the memory of the variance.

    Memory: two or three float32 vectors of P numbers (mean, scatter, reference), plus one while updating; never more,
    however many rows are kept. Means and variances are accumulated on the offset θ - θ_1 in float32 by Welford's
    recursion, so that rounding is relative to how far the iterates spread, not to the weights.
    """

    def __init__(
        self, layout: Layout, *, rows: RowLog | None = None, keep: Keep | None = None, variance: bool = True
    ) -> None:
        if rows is None and isinstance(keep, (Window, Sketch)):
            rows = RowLog(":memory:")
        self.layout, self.rows = layout, rows
        self.count = 0
        self._iterates = 0
        self._interval = 0
        self._step = -1
        self._reference: Flat | None = None
        self._mean = torch.zeros(layout.size)
        self._scatter = torch.zeros(layout.size) if variance else None
        self._scratch: Flat | None = None
        self._pending: list[Flat] = []
        self._appended = 0
        self._slots: MomentSlots | None = None
        self._saved = 0
        self.keep: Keep = "all" if keep is None else keep
        if rows is not None and rows.created:
            self._reopen(rows, keep)

    # recording --------------------------------------------------------------------------------------------------

    def update(self, theta: Flat, *, step: int | None = None) -> None:
        """Take one iterate, shape (P,), any float dtype or device: moments in place, one row appended.

        `step` labels the row (default: its number). Raises `NonFiniteError` for NaN or infinity, `LayoutError` for
        another shape, `CapacityError` when there is no room; nothing is changed then. After `load_state_dict` from
        before the newest row, iterates that are recorded already are checked against their rows, not appended again:
        `ResumeError` if they differ.
        """
        self.layout.check(theta)
        theta = theta.detach().to("cpu", torch.float32).contiguous()
        if self._reference is None:
            check_finite(bool(theta.isfinite().all()), theta, self.count + 1)
            self._begin(theta)
        reference = self._reference
        assert reference is not None
        step = self.count if step is None else step
        if self.rows is None or self.count < self._iterates:
            x = self._buffer()
            check_finite(subtract(theta, reference, x), theta, self.count + 1)
            if self.rows is not None:
                check_repeats(self.rows, self.count, step, x)
            self._advance(x)
        else:
            self._append(self.rows, theta, reference, step)
        self._iterates = max(self._iterates, self.count)
        self._step = step
        if self._slots is not None and self.count - self._saved >= self._interval:
            self._save()

    def flush(self, *, durable: bool | None = None) -> None:
        """Return when every row and the moments are stored (on stable storage if `durable`)."""
        if self.rows is not None and self.rows.created:
            self.rows.flush(durable=durable)
            if not self.rows.read_only and self._saved != self.count:
                self._save()

    def close(self) -> None:
        """`flush`, then close the log."""
        if self.rows is not None:
            try:
                if self.rows.created:
                    self.flush()
            finally:
                self.rows.close()

    def rewind(self, count: int) -> None:
        """Forget all iterates after the first `count`, rows included; they cannot be had back.

        Only where all rows are kept: a window or a sketch cannot be turned back.
        """
        if not 0 <= count <= self._iterates:
            raise ResumeError(f"rewind to {count} asked for; {self._iterates} iterates are recorded")
        if self.rows is None or not isinstance(self.keep, str):
            raise ResumeError("only moments that keep all rows can be rewound; record into a new directory")
        assert self._slots is not None
        self._slots.forget_after(count)
        self.rows.truncate(count)
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """Count, mean, scatter and reference for a checkpoint; rows stay in their log."""
        self._catch_up()
        return {
            "count": self.count,
            "step": self._step,
            "mean": self._mean.clone(),
            "scatter": None if self._scatter is None else self._scatter.clone(),
            "reference": None if self._reference is None else self._reference.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint's moments, to the bit; rows recorded after it will be checked as they come again."""
        count = int(state["count"])
        if self.rows is not None and count > self._iterates:
            raise ResumeError(
                f"the checkpoint has {count} iterates, the log {self.rows!r} only {self._iterates}: rows were lost "
                "(power cut without durability='commit'?); resume from an older checkpoint or start a new directory"
            )
        if state["reference"] is not None:
            self.layout.check(state["reference"])
            if self._reference is not None and not torch.equal(self._reference, state["reference"]):
                raise ResumeError("the checkpoint belongs to another run than the rows: their first iterates differ")
            if self._reference is None:
                self._begin(state["reference"])
        self.count, self._step, self._pending = count, int(state["step"]), []
        self._mean.copy_(state["mean"])
        if self._scatter is not None:
            self._scatter.copy_(state["scatter"])
        self._saved = min(self._saved, count)

    # results ----------------------------------------------------------------------------------------------------

    def mean(self) -> Flat:
        """The mean of all iterates (SWA), shape (P,), float32."""
        self._some()
        self._catch_up()
        assert self._reference is not None
        return self._reference + self._mean

    def variance(self) -> Flat:
        """The variances of all iterates, Σ (θ - mean)² / t, shape (P,), float32."""
        self._some()
        if self._scatter is None:
            raise StoreError("these moments were made with variance=False")
        self._catch_up()
        return self._scatter / self.count

    def gaussian(
        self,
        *,
        covariance: Covariance = "swag",
        deviations: Deviations = "running",
        window: int | None = None,
        burn_in: int = 0,
        thin: int = 1,
        scale: float | None = None,
        floor: float = 0.0,
    ) -> Gaussian:
        """A Gaussian law of the iterates; changes nothing, call it as often as you like.

        covariance:
            "swag": scale (diag(var) + D'D / (K - 1)), D the deviations of the K rows kept, scale ½ as published
            (arXiv 1902.02476, eq. 1); "diagonal": scale diag(var), scale 1 (SWAG-diagonal); "sample": the exact
            sample covariance Σ (θ_i - mean)(θ_i - mean)' / (t - 1) of all iterates, scale 1, no diagonal of its own.
        deviations: from the running mean at the time (published) or from the final mean.
        window: only the newest `window` rows make up D; mean and diagonal still come from the whole collection.
        burn_in, thin: the collection leaves out the first `burn_in` iterates and takes every `thin`-th of the rest;
            needs all rows, costs one pass.
        floor: the least variance in the diagonal, for a density where some weights never move (1e-30 is published).
        """
        self._some()
        self._catch_up()
        assert self._reference is not None
        scale = (0.5 if covariance == "swag" else 1.0) if scale is None else scale
        check_choices(covariance, deviations, window=window, burn_in=burn_in, thin=thin, scale=scale, floor=floor)
        numbers = range(burn_in, self.count, thin)
        if numbers == range(self.count):
            offset, variance = self._mean.clone(), None if self._scatter is None else self._scatter / self.count
        else:
            offset, variance = moments_of(self.rows, self.keep, numbers)
        mean = self._reference + offset
        factor = None
        if covariance != "diagonal" and self.rows is not None:
            if self.count < self._iterates and not isinstance(self.keep, str):
                raise ResumeError(
                    f"{self._iterates - self.count} recorded iterates have yet to come again; go on first"
                )
            factor = factor_of(
                self.rows,
                self._stop(self.rows),
                self.keep,
                numbers,
                offset,
                covariance=covariance,
                deviations=deviations,
                window=window,
                scale=scale,
            )
        if covariance == "sample":
            if factor is None:
                raise StoreError("a sample covariance needs two iterates and rows: Moments(layout, rows=RowLog(...))")
            return Gaussian(self.layout, mean, torch.zeros(self.layout.size), factor)
        if variance is None:
            raise StoreError("these moments were made with variance=False; only covariance='sample' can do without")
        return Gaussian(self.layout, mean, variance.clamp_(min=floor).mul_(scale), factor)

    def snapshots(self, *, burn_in: int = 0, thin: int = 1) -> Snapshots:
        """The kept iterates themselves as a law: equal weight on each (a snapshot ensemble)."""
        self._some()
        if self.rows is None or isinstance(self.keep, Sketch):
            raise StoreError("snapshots need the iterates' own rows: keep='all' or Window(K), with rows=RowLog(...)")
        assert self._reference is not None
        numbers = range(max(oldest(self.rows, self._stop(self.rows)), burn_in), self.count, thin)
        if len(numbers) == 0:
            raise StoreError(f"burn_in={burn_in} leaves none of {self.count} iterates")
        return Snapshots(self.layout, self._reference, LogRows(self.rows, numbers))

    def __repr__(self) -> str:
        return f"Moments({self.count} iterates of {self.layout.size:,} weights, keep={self.keep!r}, rows={self.rows!r})"

    # inside -----------------------------------------------------------------------------------------------------

    def _append(self, rows: RowLog, theta: Flat, reference: Flat, step: int) -> None:
        """Store a new iterate block by block while it is in the cache; every few, advance the moments as well."""
        self._make_room()
        made: list[Flat] = []
        due = False
        take = offsets(theta, reference)
        if rows.direct:
            due = len(self._pending) + 1 >= min(TOGETHER, rows.retained)
            if due:
                waiting = self._waiting()
                moments = (self._mean, self._scatter, self.count - len(waiting))
                take = offsets_and_moments(theta, reference, waiting, *moments)

        def prepare(columns: slice, row: Flat) -> None:
            check_finite(take(columns, row), theta, self.count + 1)
            made[:] = [row]

        try:
            rows.append(None if rows.direct else self._buffer(), step=step, prepare=prepare)
        except BaseException:
            if due:  # some columns may have been advanced already; a direct log has the rows to the bit
                self._restore()
            else:
                self._catch_up()
            raise
        if not rows.direct:
            self._advance(self._buffer())
            return
        self.count += 1
        self._pending, self._appended = ([] if due else [*self._pending, *made]), rows.count

    def _catch_up(self) -> None:
        """Advance the moments by the rows whose turn has not come yet."""
        waiting, self._pending = self._waiting(), []
        for number, row in enumerate(waiting, start=self.count - len(waiting) + 1):
            advance(row, self._mean, self._scatter, number)

    def _waiting(self) -> list[Flat]:
        """The rows that the moments have not met yet: where they were made, or from the log if others came since."""
        if not self._pending or self.rows is None or self.rows.count == self._appended:
            return self._pending
        return [self.rows.row(number) for number in range(self._appended - len(self._pending), self._appended)]

    def _advance(self, x: Flat) -> None:
        self.count += 1
        advance(x, self._mean, self._scatter, self.count)

    def _buffer(self) -> Flat:
        self._scratch = torch.empty(self.layout.size) if self._scratch is None else self._scratch
        return self._scratch

    def _begin(self, first: Flat) -> None:
        """Fix the reference row, and create the log if there is one."""
        if self.rows is not None:
            self.rows.create(self.layout.size, layout=self.layout, keep=ring_rows(self.keep), notes=describe(self.keep))
            self.rows.set_reference(first)
            self._attach(self.rows).reserve()
        self._reference = first.clone()

    def _attach(self, rows: RowLog) -> MomentSlots:
        """Save the moments often enough to replay what a kill loses, seldom enough to cost 1 % of the rows' bytes."""
        self._slots = MomentSlots(rows.medium, self.layout.size)
        seldom = -(-800 * self.layout.size // rows.manifest.geometry.row_bytes)
        self._interval = seldom if isinstance(self.keep, str) else min(seldom, self.keep.rows)
        return self._slots

    def _reopen(self, rows: RowLog, keep: Keep | None) -> None:
        stored = parse(rows.manifest.notes)
        if keep is not None and keep != stored:
            raise StoreError(f"{rows!r} keeps {stored!r}; {keep!r} asked for: use another directory")
        self.keep = stored
        rows.create(self.layout.size, layout=self.layout, keep=ring_rows(stored))
        self._attach(rows)
        if isinstance(stored, Sketch) and not rows.read_only:
            drop_unfinished(rows, stored.rows)
        self._restore()

    def _follow(self) -> None:
        """Take in what another process has appended to a log that is open for reading only."""
        if self.rows is None or not self.rows.read_only or (self._appended >= 0 and self.count < self._iterates):
            return
        if self.rows.refresh() != self._appended:
            self._restore()

    def _stop(self, rows: RowLog) -> int:
        """One past the number of the newest row that the moments stand for."""
        return self._appended if rows.read_only else rows.count

    def _restore(self) -> None:
        """Moments as they are stored; while another process writes, a second look may be needed to see one state."""
        for left in reversed(range(_LOOKS)):
            try:
                self._read_stored()
                return
            except OverwrittenError:
                self.count, self._appended = 0, -1
                if not left or self.rows is None or not self.rows.read_only:
                    raise
                self.rows.refresh()

    def _read_stored(self) -> None:
        """Moments from the newest slot, then from the rows after it."""
        assert self.rows is not None
        assert self._slots is not None
        self._pending, self._appended = [], self.rows.count
        self._mean.zero_()
        if self._scatter is not None:
            self._scatter.zero_()
        self.count, self._step, self._iterates = 0, -1, int((self.rows.journal.kinds == ITERATE).sum())
        self._reference = self.rows.reference() if self._iterates else None
        if self._iterates and self._reference is None:
            raise CorruptError(f"{self.rows!r}: reference.bin is missing; the rows cannot be read without it")
        if not self.rows.read_only:
            self._slots.forget_after(self._iterates)  # saved before rows were lost
        saved = self._slots.newest(self._iterates)
        if saved is not None and (saved[3] is not None or self._scatter is None):
            self.count, self._step = saved[0], saved[1]
            self._mean.copy_(saved[2])
            if self._scatter is not None and saved[3] is not None:
                self._scatter.copy_(saved[3])
        self._saved = self.count
        for number in iterate_numbers(self.rows, self.count):
            self._advance(self.rows.row(number))
            self._step = int(self.rows.journal.steps[number])

    def _save(self) -> None:
        """Save the moments, unless iterates that are recorded already are coming again: newer ones may be saved."""
        assert self.rows is not None
        assert self._slots is not None
        if self.count < self._iterates:
            return
        self._catch_up()
        durable = self.rows.durability == "commit"
        self.rows.flush(durable=durable)
        self._slots.save(self.count, self._step, self._mean, self._scatter, durable=durable)
        self._saved = self.count

    def _make_room(self) -> None:
        """Shrink a sketch that is full; the moments are saved first, as they cannot be replayed from a sketch."""
        assert self.rows is not None
        if not isinstance(self.keep, Sketch):
            return
        if len(live_rows(self.rows, self.keep.rows, self.rows.count)[0]) >= 2 * self.keep.rows:
            self._save()
            shrink(self.rows, self.keep.rows, self._mean, self.count, self._step)

    def _some(self) -> None:
        self._follow()
        if self.count == 0:
            raise StoreError("no iterates yet: call update(task.theta()) during training")

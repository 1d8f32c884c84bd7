"""The only training loop: `for epoch in epochs(task, optimizer, count=30, each_step=moments.update)`."""

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from weightbank.errors import DivergedError, ResumeError, WeightbankError
from weightbank.logs import EpochRecord
from weightbank.progress import progress
from weightbank.store.state import load_state, save_state
from weightbank.task import Task, apply
from weightbank.types import Flat
from weightbank.undisturbed import generators_of

_KIND = "weightbank checkpoint 2"


@runtime_checkable
class Taker(Protocol):
    """What wants the iterates, such as `moments.update`."""

    def __call__(self, theta: Flat, *, step: int) -> Any:
        """Take the weights after optimizer step number `step` (from 1); the vector is reused, so copy to keep."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """What can be saved in a checkpoint: schedulers, `Moments`, averages."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go on from there."""
        ...


@runtime_checkable
class Scheduler(Stateful, Protocol):
    """A learning-rate scheduler of torch."""

    def step(self) -> None:
        """Called after each epoch."""
        ...


@dataclass
class Position:
    """Epochs finished, optimizer steps in all; of the running epoch batches, examples, sum of losses and seconds."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    examples: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    def next_epoch(self) -> None:
        """Begin the next one."""
        self.epoch, self.batch, self.examples, self.loss, self.seconds = self.epoch + 1, 0, 0, 0.0, 0.0


def epochs(
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    count: int,
    each_step: Taker | None = None,
    each_epoch: Taker | None = None,
    scheduler: Scheduler | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    stateful: Mapping[str, Stateful] | None = None,
    log: Callable[[EpochRecord], Any] | None = None,
) -> Iterator[int]:
    """Train `task.model` on `task.train` and yield the number of each epoch (from 0) after it.

    each_step, each_epoch: called as `f(theta, step=n)` with the weights, shape (P,), after every optimizer step or
        epoch; `theta` is one buffer that is filled anew each time.
    scheduler: stepped after each epoch.
    checkpoint: a file that is written at once, at most every `checkpoint_seconds` and after each epoch with all the
        run needs (model, optimizer, scheduler, `stateful`, random state, position). If it is there at the start, the
        run goes on from it and ends with the same bits as one that was never stopped, also in the middle of an epoch.
        Ctrl-C finishes the step, saves, and then raises `KeyboardInterrupt`.
    stateful: further things to save, by name, such as `{"moments": moments}`.
    log: called after each epoch with its mean training loss and more, such as a `weightbank.logs.TrainingLog`.

    Raises `DivergedError` when the loss is NaN or infinite, before the weights are handed to anyone, and `DataError`
    when there are no training batches.
    """
    run = _Run(task, optimizer, scheduler, dict(stateful or {}), None if checkpoint is None else Path(checkpoint))
    done = run.load()
    theta = torch.empty(task.layout.size, dtype=task.layout.dtype, device=task.device)
    length = len(task.train) if isinstance(task.train, Sized) else None
    loss = math.nan
    total = None if length is None else count * length
    with progress(f"training {task.name}", total) as bar, _deferred_interrupt(run.path is not None) as interrupted:
        bar.advance(done.step)
        while done.epoch < count:
            saved = start = time.monotonic()
            before = done.seconds
            for x, y in run.batches(done):
                loss, examples = _step(task, optimizer, x, y), y.shape[0] if y.ndim else 1
                done.batch, done.step, done.examples = done.batch + 1, done.step + 1, done.examples + examples
                done.loss, done.seconds = done.loss + loss * examples, before + time.monotonic() - start
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"{task.name}: loss is {loss} at step {done.step} (epoch {done.epoch}, batch {done.batch}); "
                        "lower the learning rate, or look for bad values in this batch"
                    )
                if each_step is not None:
                    each_step(task.layout.ravel(task.model, out=theta), step=done.step)
                bar.advance()
                if interrupted() or (run.path and time.monotonic() - saved > checkpoint_seconds):
                    run.save(done)
                    saved = time.monotonic()
                    if interrupted():
                        raise KeyboardInterrupt
                    bar.note(f"loss {loss:.4f}")
            if log is not None:
                rate = float(optimizer.param_groups[0]["lr"])
                log(EpochRecord(done.epoch, done.step, done.loss / max(done.examples, 1), rate, done.seconds))
            if scheduler is not None:
                scheduler.step()
            if each_epoch is not None:
                each_epoch(task.layout.ravel(task.model, out=theta), step=done.step)
            bar.note(f"loss {loss:.4f}")
            yield done.epoch
            done.next_epoch()
            run.save(done)
            if interrupted():
                raise KeyboardInterrupt


def _step(task: Task, optimizer: torch.optim.Optimizer, x: Any, y: torch.Tensor) -> float:
    task.model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = task.loss(apply(task.model, x), y)
    value = float(loss.detach())
    if math.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return value


class _Run:
    """What a checkpoint saves and restores."""

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler | None,
        stateful: dict[str, Stateful],
        path: Path | None,
    ) -> None:
        self.task, self.optimizer, self.path = task, optimizer, path
        self.others = stateful if scheduler is None else {**stateful, "scheduler": scheduler}
        self._order: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None

    def load(self) -> Position:
        """Restore the checkpoint; if there is none yet, save the beginning, so that a run killed early repeats it."""
        if self.path is None or not self.path.exists():
            self.save(Position())
            return Position()
        state = load_state(self.path, _KIND)
        try:
            if state["fingerprint"] != self.task.layout.fingerprint:
                raise ResumeError(f"{self.path} is a checkpoint of another model; name another file or delete it")
            missing = set(self.others) ^ set(state["others"])
            if missing:
                raise ResumeError(f"{self.path} and this run differ in what they save: {', '.join(sorted(missing))}")
            self.task.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name, thing in self.others.items():
                thing.load_state_dict(state["others"][name])
            self._order, self._resumed = state["order"], state["random"]
            return Position(**state["position"])
        except WeightbankError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ResumeError(f"{self.path} does not fit this run: {error!r}; name another file") from error

    def save(self, done: Position) -> None:
        """Replace the checkpoint file, if one was named."""
        if self.path is None:
            return
        state = {
            "fingerprint": self.task.layout.fingerprint,
            "position": asdict(done),
            "model": dict(self.task.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "others": {name: dict(thing.state_dict()) for name, thing in self.others.items()},
            "order": self._order,
            "random": self._random(),
        }
        save_state(self.path, state, _KIND)

    def batches(self, done: Position) -> Iterator[tuple[Any, torch.Tensor]]:
        """The batches of the running epoch that are not done yet, in the order a first run had them."""
        if self._resumed is not None and done.batch == 0:
            self._restore(self._resumed)
            self._resumed = None
        if self._resumed is None:
            self._order = self._random()
        else:
            self._restore(self._order)
        iterator = self.task.batches("train")
        for _ in range(done.batch):
            if next(iterator, None) is None:
                raise ResumeError(f"the checkpoint is {done.batch} batches into an epoch, the data have fewer")
        if self._resumed is not None:
            self._restore(self._resumed)
            self._resumed = None
        yield from iterator

    def _random(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "numpy": np.random.get_state(),  # noqa: NPY002
            "python": random.getstate(),
            "loader": [generator.get_state() for generator in generators_of(self.task.train)],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        random.setstate(state["python"])
        own, kept = generators_of(self.task.train), state["loader"]
        if len(own) != len(kept):
            raise ResumeError(
                f"{self.path} was saved with {len(kept)} generators in the data loader, there are {len(own)} now; "
                "make the loader as before"
            )
        for generator, held in zip(own, kept, strict=True):
            generator.set_state(held)


@contextmanager
def _deferred_interrupt(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only be noted, so that the running step can end; the second one acts at once."""
    seen = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


def half_cosine(number: int, steps: int) -> float:
    """The factor on a rate that falls from one to zero along half a cosine, at step `number` of `steps` (from 0)."""
    return 0.5 * (1 + math.cos(math.pi * number / steps))

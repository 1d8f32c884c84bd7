"""What training has done so far, epoch by epoch: JSON lines for any program, and TensorBoard where it is installed."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weightbank.errors import StoreError

FILE, EVENTS = "log.jsonl", "tensorboard"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: its number from 0, optimizer steps in all, mean training loss of its examples, rate, seconds."""

    epoch: int
    step: int
    loss: float
    learning_rate: float
    seconds: float


_FIELDS = {field.name for field in fields(EpochRecord)}


class TrainingLog:
    """`log.jsonl` in a directory, one line an epoch (or a check of `tune`); TensorBoard events where it is installed.

    A run that goes on from a checkpoint writes its epochs again from there: lines of those steps are dropped first, so
    that every epoch stands there once.

    directory: made if it is not there; events go into `tensorboard/` in it.
    tensorboard: False for JSON lines only.

    Raises `StoreError` where the file cannot be written.
    """

    def __init__(self, directory: str | Path, *, tensorboard: bool = True) -> None:
        self.directory = Path(directory)
        self.path = self.directory / FILE
        self._events: Any = None
        self._wanted = tensorboard and find_spec("tensorboard") is not None
        self._begun = False

    def __call__(self, record: EpochRecord) -> None:
        """Take one epoch; the line is on its way to the disk when this returns."""
        scalars = {f"training/{name}": getattr(record, name) for name in ("loss", "learning_rate", "seconds")}
        self._put(record.step, asdict(record), scalars)

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take what was measured after so many steps, by name, as `weightbank.tune` does."""
        finite = {name: score if math.isfinite(score) else None for name, score in scores.items()}
        self._put(step, {"step": step, "scores": finite}, {f"scores/{name}": score for name, score in scores.items()})

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the events file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _put(self, step: int, line: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        try:
            if not self._begun:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._drop_from(step)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror}); name another directory") from error
        self._begun = True
        if self._wanted:
            if self._events is None:
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(self.directory / EVENTS), purge_step=step)
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def _drop_from(self, step: int) -> None:
        """Keep the whole lines of steps before this one."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) < step]
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        new.replace(self.path)


def read_log(path: str | Path) -> list[EpochRecord]:
    """The epochs in a `log.jsonl`, or in that of a directory; a last line that is not whole is left out."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise StoreError(f"{path}: there is no such log")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines if not math.isinf(_step_of(line))]
    return [EpochRecord(**line) for line in found if line.keys() == _FIELDS]


def _step_of(line: str) -> float:
    """Infinite for a line that is no record."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return math.inf

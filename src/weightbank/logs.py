"""What training has done so far, epoch by epoch: JSON lines for any program, and TensorBoard where it is installed."""

import json
import math
from dataclasses import asdict, dataclass
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


class TrainingLog:
    """`log.jsonl` in a directory, one line an epoch; and events in `tensorboard/` if that package is installed.

    A run that goes on from a checkpoint writes its epochs again from there: lines of those epochs are dropped first,
    so that every epoch stands there once.

    directory: made if it is not there.
    tensorboard: False for JSON lines only.

    Raises `StoreError` where the file cannot be written.
    """

    def __init__(self, directory: str | Path, *, tensorboard: bool = True) -> None:
        self.directory = Path(directory)
        self.path = self.directory / FILE
        self._events: Any = None
        self._wanted = tensorboard and find_spec("tensorboard") is not None
        self._last: int | None = None

    def __call__(self, record: EpochRecord) -> None:
        """Take one epoch; the line is on its way to the disk when this returns."""
        try:
            if self._last is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._drop_from(record.epoch)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record), allow_nan=False) + "\n")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror}); name another directory") from error
        if self._wanted:
            self._to_tensorboard(record)
        self._last = record.epoch

    def __enter__(self) -> "TrainingLog":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the events file."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _drop_from(self, epoch: int) -> None:
        """Keep the whole lines of epochs before this one."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _epoch_of(line) < epoch]
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        new.replace(self.path)

    def _to_tensorboard(self, record: EpochRecord) -> None:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self.directory / EVENTS), purge_step=record.step)
        for name in ("loss", "learning_rate", "seconds"):
            self._events.add_scalar(f"training/{name}", getattr(record, name), record.step)
        self._events.flush()


def read_log(path: str | Path) -> list[EpochRecord]:
    """The epochs in a `log.jsonl`, or in that of a directory; a last line that is not whole is left out."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise StoreError(f"{path}: there is no such log")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [EpochRecord(**json.loads(line)) for line in lines if not math.isinf(_epoch_of(line))]


def _epoch_of(line: str) -> float:
    """Infinite for a line that is no record."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, LookupError, TypeError):
        return math.inf

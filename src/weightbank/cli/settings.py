"""The settings of a recorded run, kept in its directory as `run.json` so that it can be resumed and evaluated."""

from dataclasses import dataclass
from typing import ClassVar

from weightbank.cli.kept import Kept

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Settings(Kept):
    """What `posterior run` was asked for; plain numbers and text only."""

    FILE: ClassVar = RUN_FILE
    KIND: ClassVar = "weightbank run 1"
    WHAT: ClassVar = "run"
    COMMAND: ClassVar = "posterior run"

    model: str
    data: str
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    every: int
    keep: str
    format: str
    medium: str
    node: str | None
    device: str
    csv: str | None
    seed: int
    durability: str
    skip_epochs: int
    schedule: str
    swa_learning_rate: float

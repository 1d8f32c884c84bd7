"""The settings of a recorded run, kept in its directory as `run.json` so that it can be resumed and evaluated."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from weightbank.errors import CorruptError, StoreError

RUN_FILE = "run.json"
_KIND, _LIMIT = "weightbank run 1", 1 << 16


@dataclass(frozen=True)
class Settings:
    """What `posterior run` was asked for; plain numbers and text only."""

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

    def save(self, directory: Path) -> None:
        """Write `run.json` in one step that survives a power loss."""
        from weightbank.store.media import Directory

        text = json.dumps({"kind": _KIND, **asdict(self)}, indent=1)
        Directory(directory).replace(RUN_FILE, text.encode())

    @classmethod
    def load(cls, directory: Path) -> "Settings":
        """Read `run.json`; `StoreError` where there is none, `CorruptError` where it is not one of ours."""
        from weightbank.store.media import Directory

        file = directory / RUN_FILE
        if not file.is_file():
            raise StoreError(f"{directory}: no run here (there is no {RUN_FILE}); `weightbank posterior run` makes one")
        try:
            found = json.loads(Directory(directory).read(RUN_FILE, _LIMIT))
            if not isinstance(found, dict) or found.pop("kind", None) != _KIND:
                raise CorruptError(f"{file}: not the settings of a run")
            return cls(**{field.name: _checked(found, field.name, field.type) for field in fields(cls)})
        except (ValueError, RecursionError) as error:
            raise CorruptError(f"{file}: cannot be read: {error}") from error


def _checked(found: dict[str, Any], name: str, kind: Any) -> Any:
    """The value of one setting, of the right type."""
    if name not in found:
        raise CorruptError(f"{RUN_FILE}: '{name}' is missing")
    value = found[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is bool or not isinstance(value, kind):
        raise CorruptError(f"{RUN_FILE}: {name}={value!r}; wanted {getattr(kind, '__name__', kind)}")
    return value

"""What a command was asked for, kept in the directory of its run, so that the run can go on."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from weightbank.errors import CorruptError, StoreError

_LIMIT = 1 << 16
S = TypeVar("S", bound="Kept")


class Kept:
    """The base of frozen dataclasses of plain numbers and text: written to and read from one small JSON file.

    FILE: its name in the run's directory. KIND: what it says it is. WHAT: a run in one word. COMMAND: what makes one.
    """

    FILE: ClassVar[str]
    KIND: ClassVar[str]
    WHAT: ClassVar[str]
    COMMAND: ClassVar[str]

    def save(self, directory: Path) -> None:
        """Write the file in one step that survives a power loss."""
        from weightbank.store.media import Directory

        text = json.dumps({"kind": self.KIND, **asdict(self)}, indent=1)  # type: ignore[call-overload]
        Directory(directory).replace(self.FILE, text.encode())

    @classmethod
    def load(cls: type[S], directory: Path) -> S:
        """Read the file; `StoreError` where there is none, `CorruptError` where it is not one of these."""
        from weightbank.store.media import Directory

        file = directory / cls.FILE
        if not file.is_file():
            raise StoreError(
                f"{directory}: no {cls.WHAT} here (there is no {cls.FILE}); `weightbank {cls.COMMAND}` makes one"
            )
        try:
            found = json.loads(Directory(directory).read(cls.FILE, _LIMIT))
            if not isinstance(found, dict) or found.pop("kind", None) != cls.KIND:
                raise CorruptError(f"{file}: not the settings of a {cls.WHAT}")
            own = fields(cls)  # type: ignore[arg-type]
            return cls(**{field.name: _checked(file.name, found, field.name, field.type) for field in own})
        except (ValueError, RecursionError) as error:
            raise CorruptError(f"{file}: cannot be read: {error}") from error


def _checked(file: str, found: dict[str, Any], name: str, kind: Any) -> Any:
    """The value of one setting, of the right type."""
    if name not in found:
        raise CorruptError(f"{file}: '{name}' is missing")
    value = float(found[name]) if kind is float and type(found[name]) is int else found[name]
    if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
        raise CorruptError(f"{file}: {name}={value!r}; wanted {getattr(kind, '__name__', kind)}")
    return value

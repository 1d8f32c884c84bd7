"""Which columns of an Arrow table hold the images, the labels and the split."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from weightbank.data.extras import require
from weightbank.errors import DataError


@dataclass(frozen=True)
class Columns:
    """The names of the columns, and the class names where the table has them."""

    image: str
    label: str
    split: str | None
    classes: tuple[str, ...] | None
    nested: bool  # True = the image column is a struct of bytes and path, False = it is bytes

    @property
    def leaves(self) -> list[str]:
        """The leaf columns that have to be read."""
        image = f"{self.image}.bytes" if self.nested else self.image
        return [image, self.label] + ([] if self.split is None else [self.split])

    def encoded(self, row: Mapping[str, Any]) -> bytes | None:
        """Return the bytes of the image in a row; None if the row has none."""
        value = row[self.image]
        encoded: bytes | None = value["bytes"] if self.nested and value is not None else value
        return encoded


def find_columns(
    schema: Any,
    source: str,
    *,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    kind: Literal["image", "audio"] = "image",
) -> Columns:
    """Find the columns of an Arrow schema by argument, by Hugging Face's notes, by usual name, or as the only ones.

    Images are bytes, or a struct with the field `bytes`; labels are integers. There is a split column only if `split`
    names it. With `kind` "audio" recordings are looked for instead, and `image` names their column.

    Raises:
        DataError: there is no such column, or no telling which; the message lists the columns.
    """
    types = require("pyarrow", f"reading {source}").types

    def is_encoded(kind: Any) -> bool:
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def is_text(kind: Any) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind))

    fields = {field.name: field.type for field in schema}
    if len(fields) < len(schema.names):
        raise DataError(f"{source} has two columns of one name among {', '.join(schema.names)}; wanted different names")
    notes = _notes(schema)

    def pick(what: str, wanted: str | None, usable: Callable[[Any], bool], note: str, usual: tuple[str, ...]) -> str:
        able = [name for name, kind in fields.items() if usable(kind) and wanted in (None, name)]
        noted = [name for name in able if notes.get(name, {}).get("_type") == note]
        named = [name for name in usual if name in able]
        for choice in (noted if len(noted) == 1 else [], named[:1], able if len(able) == 1 else []):
            if choice:
                return choice[0]
        listed = ", ".join(f"{name} ({kind})" for name, kind in fields.items())
        raise DataError(
            f"{source} has {len(able) or 'no'} columns that could be the {what}"
            f"{'' if wanted is None else f' {wanted!r}'}; its columns are {listed}; name the right one with {what}="
        )

    image = pick(kind, image, is_encoded, kind.capitalize(), (kind, "img"))
    label = pick("label", label, types.is_integer, "ClassLabel", ("label", "labels"))
    return Columns(
        image=image,
        label=label,
        split=None if split is None else pick("split", split, is_text, "", ()),
        classes=_class_names(notes.get(label, {})),
        nested=types.is_struct(fields[image]),
    )


def _notes(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face noted about each column; nothing where there is nothing that can be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: note for name, note in features.items() if isinstance(note, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _class_names(note: dict[str, Any]) -> tuple[str, ...] | None:
    names = note.get("names")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None

"""The immutable first page of a log: what its rows are, checked value by value when it is read."""

import json
from dataclasses import dataclass
from typing import Any

from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, LayoutError, StoreError, WeightbankError
from weightbank.formats import Format, format_of
from weightbank.layout import Layout
from weightbank.store.segments import Geometry

MANIFEST_BYTES = 16 << 20
_KIND, _VERSION, _DIMENSIONS = "weightbank rows", 1, 64


@dataclass(frozen=True)
class Manifest:
    """Numbers per row, their format, rows to keep (None: all), sizes on the medium, and the layout of the weights."""

    size: int
    format: Format
    keep: int | None
    geometry: Geometry
    layout: Layout | None = None
    notes: Any = None

    def dump(self) -> bytes:
        """The manifest as JSON with a checksum of everything else in it; `StoreError` for notes that are not JSON."""
        content = {
            "kind": _KIND,
            "version": _VERSION,
            "size": self.size,
            "format": repr(self.format),
            "keep": self.keep,
            "slots": self.geometry.slots,
            "row_bytes": self.geometry.row_bytes,
            "segment_rows": self.geometry.segment_rows,
            "layout": None if self.layout is None else self.layout.describe(),
            "notes": self.notes,
        }
        try:
            content = json.loads(json.dumps(content))
            data = json.dumps({**content, "crc32": _checksum(content)}, indent=1).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"notes={self.notes!r} cannot be kept as JSON: {error}") from error
        if len(data) > MANIFEST_BYTES:
            raise StoreError(f"a manifest of {len(data):,} bytes came; wanted at most {MANIFEST_BYTES:,}")
        return data

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Manifest":
        """Read and check a manifest; `CorruptError` says what is wrong. Nothing in it is executed or allocated."""
        try:
            content = json.loads(data)
            if not isinstance(content, dict) or content.get("kind") != _KIND:
                raise CorruptError(f"{where}: manifest.json is not that of a row log")
            if content.get("version") != _VERSION:
                raise CorruptError(
                    f"{where}: version {repr(content.get('version'))[:80]}; this library reads {_VERSION}"
                )
            if content.pop("crc32", None) != _checksum(content):
                raise CorruptError(f"{where}: manifest.json does not match its checksum")
            size, keep = content["size"], content["keep"]
            if not _positive(size) or not (keep is None or _positive(keep)):
                raise CorruptError(f"{where}: manifest.json has size {repr(size)[:80]}, keep {repr(keep)[:80]}")
            chosen = format_of(str(content["format"]))
            geometry = Geometry(chosen.row_bytes(size), content["slots"], content["segment_rows"])
            slots = geometry.slots
            good = geometry.row_bytes == content["row_bytes"] and _positive(geometry.segment_rows)
            good = good and geometry.plausible and (slots is None) == (keep is None)
            good = good and (slots is None or (_positive(slots) and slots > keep))
            layout = _layout(content["layout"])
            if not good or (layout is not None and layout.size != size):
                raise CorruptError(f"{where}: manifest.json contradicts itself")
        except CorruptError:
            raise
        except (WeightbankError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptError(f"{where}: manifest.json cannot be read: {error}") from error
        return cls(size, chosen, keep, geometry, layout, content.get("notes"))

    def check_fit(self, where: str, size: int, layout: Layout | None, keep: int | None) -> None:
        """Raise unless such a log can take rows of `size` weights laid out as `layout`, keeping `keep`."""
        if self.size != size:
            raise LayoutError(f"{where} holds rows of {self.size:,} weights; {size:,} came")
        if layout is not None and self.layout is not None and layout.fingerprint != self.layout.fingerprint:
            raise LayoutError(
                f"{where} holds the weights of another model (layout {self.layout.fingerprint}, "
                f"this one is {layout.fingerprint}); use another directory"
            )
        if self.keep != keep:
            asked = "all rows" if keep is None else f"the newest {keep} rows"
            holds = "all rows" if self.keep is None else f"the newest {self.keep} rows"
            raise StoreError(f"{where} was created to keep {holds}; {asked} asked for: use another directory")


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**48


def _layout(described: Any) -> Layout | None:
    """A layout whose shapes have at most as many dimensions as a tensor, so that their products stay small."""
    if described is not None and any(len(item["shape"]) > _DIMENSIONS for item in described):
        raise CorruptError(f"a shape of more than {_DIMENSIONS} dimensions")
    return None if described is None else Layout.parse(described)


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{crc32(text.encode()):08x}"

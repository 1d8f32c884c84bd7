"""A network's weights in their true number of bits, in memory or in a `.safetensors` file: a law with one point."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from zlib_ng.zlib_ng import crc32

from weightbank.errors import CorruptError, FormatError, LayoutError
from weightbank.formats import Format, Packed, Rounding, format_of
from weightbank.formats.rounding import key as key_of
from weightbank.layout import Layout
from weightbank.store.arrays import ArrayFile, bytes_of, save_arrays
from weightbank.types import Draws, Flat

_KIND = "weightbank packed 1"
_FEWEST_BITS = 2

Choice: TypeAlias = Format | torch.dtype | str


def pack(
    theta: Flat,
    layout: Layout,
    format: Choice | Mapping[str, Choice],
    path: str | Path | None = None,
    *,
    rounding: Rounding = "nearest",
    key: int | None = None,
) -> "PackedWeights":
    """Round every parameter tensor of `theta`, shape (P,), to `format` and keep its codes and scales.

    format: for all parameters, or one for each by name.
    path: a `.safetensors` file to write, in one step that survives a power loss; the result then reads from it.
    key: for stochastic rounding; every parameter has a stream of its own under it.

    Raises `FormatError` for a format that cannot be stored or weights beyond it, `NonFiniteError` for NaN and
    infinities, `LayoutError` for other shapes and missing names.

    >>> layout = Layout.of(torch.nn.Linear(64, 10))
    >>> pack(torch.ones(650), layout, "BlockFloatingPoint(6)").nbytes  # 640 * 6 / 8 + 10 * 6 / 8 and two exponents
    490
    """
    layout.check(theta)
    formats = _by_name(layout, format)
    parts: dict[str, Packed] = {}
    for entry in layout.entries:
        part = theta[entry.offset : entry.offset + entry.size].view(entry.shape)
        own = None if key is None else key_of(key, entry.name, 0)
        parts[entry.name] = formats[entry.name].pack(part, rounding=rounding, key=own)
    packed = PackedWeights(layout, parts)
    if path is None:
        return packed
    packed.save(path)
    return PackedWeights.open(path)


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """The packed tensors of all parameters by name; as a law, all mass on their values."""

    layout: Layout
    parts: Mapping[str, Packed]

    def __post_init__(self) -> None:
        if set(self.parts) != set(self.layout.names):
            missing = sorted(set(self.layout.names) ^ set(self.parts))
            raise LayoutError(f"packed tensors and layout differ in: {', '.join(missing[:8])}")

    @classmethod
    def open(cls, path: str | Path) -> "PackedWeights":
        """Weights written by `pack` or `save`; tensors stay in the file, mapped when they are asked for.

        Raises `CorruptError` for a file that is something else or not whole, `StoreError` where there is none.
        """
        file = ArrayFile(path)
        if file.metadata.get("weightbank") != _KIND:
            raise CorruptError(f"{path}: holds {file.metadata.get('weightbank', 'something else')!r}, wanted {_KIND!r}")
        try:
            layout = Layout.parse(json.loads(file.metadata["layout"]))
            written = json.loads(file.metadata["formats"])
            formats = {name: format_of(str(written[name])) for name in layout.names}
            noted = json.loads(file.metadata.get("crc32", "{}"))
            sums = {name: str(noted[name]) for name in layout.names if noted}
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path}: its layout or formats cannot be read: {error}") from error
        wanted = {f"{name}:{part}" for name in layout.names for part in ("codes", "scales")}
        if set(file.shapes) != wanted:
            odd = sorted(set(file.shapes) ^ wanted)
            raise CorruptError(f"{path}: arrays do not fit the layout: {', '.join(odd[:8])}")
        for entry in layout.entries:
            codes, scales = (f"{entry.name}:{part}" for part in ("codes", "scales"))
            kinds, shape = (file.dtypes[codes], file.dtypes[scales]), file.shapes[codes]
            if kinds[0] != torch.uint8 or kinds[1] not in (torch.int8, torch.uint8) or len(file.shapes[scales]) != 1:
                raise CorruptError(f"{path}: '{entry.name}' has codes in {kinds[0]} and scales in {kinds[1]}")
            if len(shape) != 1 or 8 * shape[0] < _FEWEST_BITS * entry.size:
                raise CorruptError(f"{path}: '{entry.name}' has codes of shape {shape} for {entry.size:,} weights")
        return cls(layout, _FileParts(file, layout, formats, sums))

    def save(self, path: str | Path) -> None:
        """Write one `.safetensors` file, atomically: plain uint8 codes and one byte per scale."""
        parts, arrays = dict(self.parts.items()), {}
        for name, part in parts.items():
            arrays[f"{name}:codes"], arrays[f"{name}:scales"] = part.codes, part.scales
        metadata = {
            "weightbank": _KIND,
            "layout": json.dumps(self.layout.describe()),
            "formats": json.dumps({name: repr(part.format) for name, part in parts.items()}),
            "crc32": json.dumps({name: _checksum(part) for name, part in parts.items()}),
        }
        save_arrays(path, arrays, metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        if isinstance(self.parts, _FileParts):
            return self.parts.nbytes
        return sum(part.nbytes for part in self.parts.values())

    def unpack(self, out: Flat | None = None) -> Flat:
        """The values θ, shape (P,), float32 or into `out`; `CorruptError` where bytes do not fit their format."""
        if out is None:
            out = torch.empty(self.layout.size)
        self.layout.check(out)
        for entry in self.layout.entries:
            part = out[entry.offset : entry.offset + entry.size].view(entry.shape)
            try:
                self.parts[entry.name].unpack(out=part)
            except FormatError as error:
                raise CorruptError(f"'{entry.name}': {error}") from error
        return out

    def mean(self) -> Flat:
        """The values, shape (P,), float32."""
        return self.unpack()

    def variance(self) -> Flat:
        """Zero, shape (P,)."""
        return torch.zeros(self.layout.size)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` views of the values, shape (S, P)."""
        return self.unpack().expand(count, -1)

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The values, `count` times."""
        theta = self.unpack()
        return iter([theta] * count)


class _FileParts(Mapping[str, Packed]):
    """Packed tensors that stay in their file; each is read once to check it when it is asked for."""

    def __init__(self, file: ArrayFile, layout: Layout, formats: Mapping[str, Format], sums: Mapping[str, str]) -> None:
        self.file, self.formats, self.sums = file, formats, sums
        self.shapes = {entry.name: entry.shape for entry in layout.entries}

    def __getitem__(self, name: str) -> Packed:
        codes, scales = self.file.map(f"{name}:codes"), self.file.map(f"{name}:scales")
        part = Packed(self.formats[name], self.shapes[name], codes, scales)
        if self.sums and _checksum(part) != self.sums[name]:
            raise CorruptError(f"{self.file.path}: '{name}' does not match its checksum; the file is damaged")
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def nbytes(self) -> int:
        return sum(shape[0] for shape in self.file.shapes.values() if shape)


def _checksum(part: Packed) -> str:
    total = crc32(f"{part.format!r} {part.shape}".encode())
    for stored in (part.codes, part.scales):
        total = crc32(bytes_of(stored.detach().to("cpu").contiguous()), total)
    return f"{total:08x}"


def _by_name(layout: Layout, format: Choice | Mapping[str, Choice]) -> dict[str, Format]:
    if not isinstance(format, Mapping):
        chosen = format_of(format)
        return dict.fromkeys(layout.names, chosen)
    missing = sorted(set(layout.names) ^ set(format))
    if missing:
        raise LayoutError(f"formats and layout differ in: {', '.join(missing[:8])}; give one for each parameter")
    return {name: format_of(choice) for name, choice in format.items()}

"""A pool as one `.safetensors` file: the owner tensor, small tables, and a manifest checked before it is believed.

The manifest is JSON in the file's metadata. Reading it executes nothing, and nothing is allocated before it has been
found whole and without contradiction; every array has a checksum.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from zlib_ng.zlib_ng import crc32

from weightbank.errors import ConflictError, CorruptError, LayoutError, StoreError, WeightbankError
from weightbank.formats import Native, format_of
from weightbank.layout import Layout
from weightbank.paging.owner import LARGEST, Owner
from weightbank.paging.placement import Extent, Placement
from weightbank.paging.serve import Generation
from weightbank.paging.tenant import Tenant
from weightbank.store.arrays import ArrayFile, bytes_of, save_arrays
from weightbank.store.media import errors_named

KIND, VERSION = "weightbank pool", 1
_DIMENSIONS = 64


def save_pool(path: Path, generation: Generation, *, reserve: int, importance: bool, known: str | None) -> str:
    """Write a generation to `path`, replacing a pool there in one step; its stamp. See `Pool.save`.

    known: the stamp of the file that this pool comes from, or None to replace whatever is there. Raises
        `ConflictError` if another one is there now.
    """
    owner = generation.owner
    arrays: dict[str, Tensor] = {"owner": owner.raw if owner.plain is None else owner.plain}
    tenants = []
    for number, tenant in enumerate(generation.tenants.values()):
        placement = tenant.placement
        if len(placement.pages):
            arrays[f"pages/{number}"] = placement.pages.int()
            arrays[f"private/{number}"] = placement.private
        if importance and tenant.importance is not None:
            arrays[f"importance/{number}"] = tenant.importance
        arrays |= {f"rest/{number}/{name}": tensor for name, tensor in tenant.rest.items()}
        tenants.append(
            {
                "name": tenant.name,
                "layout": tenant.layout.describe(),
                "extents": [[e.start, e.position, e.length, e.exclusive] for e in placement.extents],
                "page_size": placement.page_size,
                "pages": len(placement.pages),
                "rest": list(tenant.rest),
                "keys": list(map(list, tenant.keys.items())),
                "importance": f"importance/{number}" in arrays,
                "scale": tenant.scale,
                "notes": dict(tenant.notes),
            }
        )
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "generation": generation.number,
        "format": repr(owner.format),
        "positions": owner.size,
        "reserve": reserve,
        "tenants": tenants,
        "crc32": {name: _checksum(tensor) for name, tensor in arrays.items()},
    }
    try:
        text = json.dumps(manifest, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: the notes of a tenant cannot be kept as JSON: {error}") from error
    path = path.absolute()
    with errors_named(f"{path.parent}: cannot make this directory"):
        path.parent.mkdir(parents=True, exist_ok=True)
    stamp = f"{crc32(text.encode()):08x}"
    with _alone_in(path.parent):
        if known is not None and path.exists() and (found := stamp_of(path)) != known:
            raise ConflictError(
                f"{path}: was replaced since this pool read or wrote it"
                f"{'' if found else ', by something that is no pool'}, so nothing was saved: call refresh() and edit "
                "again, save under another name, or pass overwrite=True to lose what is there"
            )
        save_arrays(path, arrays, {"weightbank": KIND, "manifest": text, "crc32": stamp})
    return stamp


def stamp_of(path: Path) -> str:
    """The checksum of the manifest of a pool's file, and with it of all that it describes; empty for another file.

    Reads the header only. Raises `StoreError` where there is no file.
    """
    try:
        with ArrayFile(path) as file:
            return file.metadata.get("crc32", "") if file.metadata.get("weightbank") == KIND else ""
    except CorruptError:
        return ""


def load_pool(path: Path, *, mapped: bool) -> tuple[Generation, int, str]:
    """The generation in a file, its reserve, and its stamp; see `Pool.open`."""
    with ArrayFile(path) as file:
        text = file.metadata.get("manifest", "")
        if file.metadata.get("weightbank") != KIND or not text:
            raise CorruptError(f"{path}: a .safetensors file, but not one of a pool")
        stamp = f"{crc32(text.encode()):08x}"
        if file.metadata.get("crc32") != stamp:
            raise CorruptError(f"{path}: its manifest does not match its checksum")
        try:
            manifest = json.loads(text)
            if manifest["kind"] != KIND or manifest["version"] != VERSION:
                raise CorruptError(
                    f"{path}: version {repr(manifest['version'])[:40]} of {repr(manifest['kind'])[:40]}; "
                    f"this library reads version {VERSION}"
                )
            return _Reader(file, manifest).generation(mapped), int(manifest["reserve"]), stamp
        except CorruptError:
            raise
        except (WeightbankError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptError(f"{path}: its manifest contradicts itself or the file: {error}") from error


class _Reader:
    """One pass that only looks, and one that reads."""

    def __init__(self, file: ArrayFile, manifest: Mapping[str, Any]) -> None:
        self.file, self.manifest, self.path = file, manifest, file.path
        self.size = _whole(manifest["positions"], "positions", 1, LARGEST)
        self.format = format_of(str(manifest["format"]))
        _whole(manifest["reserve"], "reserve", 0, self.size)
        self.number = _whole(manifest["generation"], "generation", 0, 2**62)

    def generation(self, mapped: bool) -> Generation:
        """Check everything, then read everything."""
        native = self.format.dtype if isinstance(self.format, Native) else None
        length = self.format.row_bytes(self.size) if native is None else self.size
        self._expect("owner", native or torch.uint8, length)
        described = self.manifest["tenants"]
        layouts = [self._look(number, item) for number, item in enumerate(described)]
        names = [str(item["name"]) for item in described]
        if len(set(names)) != len(names):
            raise LayoutError(f"two tenants have one name: {', '.join(names)}")
        tenants = {
            name: self._tenant(number, item, layout)
            for number, (name, item, layout) in enumerate(zip(names, described, layouts, strict=True))
        }
        self._check_exclusive(tenants)
        return Generation(self.number, self._owner(mapped), tenants)

    def _look(self, number: int, item: Mapping[str, Any]) -> Layout:
        """Raise unless a tenant's description fits itself and the file; nothing is read."""
        if any(len(entry["shape"]) > _DIMENSIONS for entry in item["layout"]):
            raise LayoutError(f"a shape of more than {_DIMENSIONS} dimensions")
        layout = Layout.parse(item["layout"])
        if layout.size > self.size or len(set(layout.names)) != len(layout.names):
            raise LayoutError(f"{layout.size:,} weights, or a name twice, in {self.size:,} positions")
        pages = _whole(item["pages"], "pages", 0, self.size)
        _whole(item["page_size"], "page_size", 1, LARGEST)
        for start, position, length, exclusive in item["extents"]:
            for value in (start, position, length):
                _whole(value, "an extent", 0, self.size)
            if type(exclusive) is not bool:
                raise LayoutError(f"an extent is exclusive or not, not {repr(exclusive)[:40]}")
        if pages:
            self._expect(f"pages/{number}", torch.int32, pages)
            self._expect(f"private/{number}", torch.bool, pages)
        if item["importance"]:
            self._expect(f"importance/{number}", torch.bfloat16, layout.size)
        rest = [str(name) for name in item["rest"]]
        for name in rest:
            self._expect(f"rest/{number}/{name}")
        known = {*layout.names, *rest}
        for key, source in item["keys"]:
            if type(key) is not str or source not in known:
                raise LayoutError(f"'{str(key)[:80]}' stands for {str(source)[:80]!r}, which is not there")
        if type(item["name"]) is not str or not item["name"] or type(item["notes"]) is not dict:
            raise LayoutError(f"a tenant is called {repr(item['name'])[:80]}")
        if type(item["scale"]) is not float or not 0 <= item["scale"] < float("inf"):
            raise LayoutError(f"a scale of {repr(item['scale'])[:40]}")
        return layout

    def _tenant(self, number: int, item: Mapping[str, Any], layout: Layout) -> Tenant:
        placement = Placement(layout.size, tuple(Extent(*extent) for extent in item["extents"]), item["page_size"])
        if item["pages"]:
            pages, private = self._read(f"pages/{number}"), self._read(f"private/{number}")
            placement = Placement(layout.size, placement.extents, placement.page_size, pages, private)
        placement.check(self.size)
        return Tenant(
            name=item["name"],
            layout=layout,
            placement=placement,
            rest={name: self._read(f"rest/{number}/{name}") for name in item["rest"]},
            keys=dict(item["keys"]),
            importance=self._read(f"importance/{number}") if item["importance"] else None,
            scale=item["scale"],
            notes=item["notes"],
        )

    def _owner(self, mapped: bool) -> Owner:
        if mapped:
            tensor = self.file.map("owner")
            self._check("owner", tensor)
        else:
            tensor = self._read("owner")
        return Owner(self.format, self.size, tensor.view(torch.uint8))

    def _check_exclusive(self, tenants: Mapping[str, Tenant]) -> None:
        count = torch.zeros(self.size, dtype=torch.int32)
        for tenant in tenants.values():
            tenant.placement.mark(count)
        for name, tenant in tenants.items():
            for position, length in tenant.placement.runs(exclusive_only=True):
                if int(count[position : position + length].max()) > 1:
                    raise LayoutError(f"others stand on exclusive positions of '{name}', from {position:,} on")

    def _expect(self, name: str, dtype: torch.dtype | None = None, length: int | None = None) -> None:
        shape = self.file.shapes.get(name)
        if shape is None or (dtype is not None and (self.file.dtypes[name], shape) != (dtype, (length,))):
            found = "nothing" if shape is None else f"{tuple(shape)} of {self.file.dtypes[name]}"
            raise LayoutError(f"'{name[:80]}' should be {length} of {dtype}; the file has {found}")

    def _read(self, name: str) -> Tensor:
        tensor = self.file.read(name)
        self._check(name, tensor)
        return tensor

    def _check(self, name: str, tensor: Tensor) -> None:
        if self.manifest["crc32"].get(name) != _checksum(tensor):
            raise CorruptError(f"{self.path}: '{name}' does not match its checksum")


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise LayoutError(f"{what} is {repr(value)[:40]}; wanted a whole number from {least:,} to {most:,}")
    return value


def _checksum(tensor: Tensor) -> str:
    return f"{crc32(bytes_of(tensor.detach().contiguous())):08x}"


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Wait until nobody else, in any process, writes a pool into this directory."""
    with errors_named(f"{directory}: cannot lock"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

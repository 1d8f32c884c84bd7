"""Read published weights and importances of the page networks from `.npz` files.

Such a file is a zip archive of arrays: `flat_weight` and vectors such as `flat_fisher` with one number per weight, and
the same numbers tensor by tensor as `weight_00`, `weight_01`, ... A file may be anybody's: an array is read only when
its header promises exactly the shape and type that are wanted, and nothing in it is ever unpickled.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.lib import format as npy
from torch import nn

from weightbank.errors import CorruptError, LayoutError, NonFiniteError, StoreError
from weightbank.layout import Layout
from weightbank.types import Flat
from weightbank.zoo.page_networks import PageNetwork, published_order, published_shapes


def load_page_network(path: str | Path, network: PageNetwork, *, array: str = "flat_weight") -> nn.Sequential:
    """Return the network with the weights of a published file; array and errors are those of `read_page_vector`."""
    model = network.build()
    Layout.of(model).assign(model, read_page_vector(path, network, array=array))
    return model


def read_page_vector(path: str | Path, network: PageNetwork, *, array: str = "flat_weight") -> Flat:
    """Return one number per weight, shape (P,), float32, in the order of `Layout.of(network.build())`.

    Args:
        path: the `.npz` file.
        network: whose weights they are.
        array: `flat_weight`, an importance such as `flat_fisher` or `fisher_exact`, or the name of an array that is
            kept tensor by tensor, such as `virtual_weight` for `virtual_weight_00`, `virtual_weight_01`, ...

    Raises:
        StoreError: there is no such file.
        CorruptError: no zip archive, a damaged one, or an array that is not plain float32.
        LayoutError: no such array, or one of another shape than the network's.
        NonFiniteError: a number is NaN or infinite.
    """
    path = Path(path)
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    shapes = published_shapes(network)
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{array}.npy" in archive.namelist():
                wanted: dict[str, tuple[int, ...]] = {f"{array}.npy": (network.size,)}
            else:
                wanted = {f"{array}_{number:02d}.npy": shape for number, shape in enumerate(shapes)}
            parts = [_read(archive, member, shape, path) for member, shape in wanted.items()]
    except (CorruptError, LayoutError):
        raise
    except Exception as error:  # damaged archives and headers fail in many ways
        raise CorruptError(f"{path}: damaged, or no .npz file: {error}") from error
    published = torch.from_numpy(np.concatenate(parts))
    if not bool(torch.isfinite(published).all()):
        raise NonFiniteError(f"{path}: '{array}' has NaN or infinite numbers; take another file")
    return published[published_order(network)]


def _read(archive: zipfile.ZipFile, member: str, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Return the numbers of one array, flat; reads no more than its header and the bytes of `shape`."""
    if member not in archive.namelist():
        vectors = sorted(name.removesuffix(".npy") for name in archive.namelist()[:200] if not name[-6:-4].isdigit())
        raise LayoutError(
            f"{path}: no array '{member.removesuffix('.npy')}'; it has {', '.join(vectors) or 'numbered arrays only'}"
        )
    with cast(io.BufferedIOBase, archive.open(member)) as stream:
        found, transposed, kind = _header(stream)
        if found != shape:
            raise LayoutError(
                f"{path}: '{member}' has shape {found} where the network has {shape}; give the network it is of"
            )
        if kind != np.dtype("<f4") or (transposed and len(shape) > 1):
            raise CorruptError(f"{path}: '{member}' is {kind}, order {'F' if transposed else 'C'}; wanted float32, C")
        size = 4 * math.prod(shape)
        values = stream.read(size)
        if len(values) < size or stream.read(1):
            raise CorruptError(f"{path}: '{member}' does not have the {size:,} bytes its header promises")
    return np.frombuffer(bytearray(values), "<f4")


def _header(stream: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in read:
        raise CorruptError(f"array format {version}; wanted 1.0 or 2.0")
    return read[version](stream)

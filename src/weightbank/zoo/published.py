"""Read the weights of published selective write-verify networks (arXiv 2202.08395) into the zoo's plain ones.

Such a file is a `state_dict` whose layers are wrapped: `conv1.op.weight` is the weight, `conv1.weightS` a dummy of its
shape, made to carry second derivatives. The weights are stored as trained, neither normalised nor quantized. A file may
be anybody's: no object in it is ever built but tensors, and nothing is read before its shape is known to fit.
"""

import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from weightbank.errors import CorruptError, LayoutError, NonFiniteError, StoreError
from weightbank.store.arrays import ArrayFile

Model = TypeVar("Model", bound=nn.Module)
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

DUMMY = "weightS"
COUNTER = "num_batches_tracked"
MAX_PROGRAM = 1 << 20
"""Bytes of the small program in a torch file that rebuilds its tensors; one of 850 tensors takes about 150,000."""
BUILDERS = frozenset(
    ["collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"]
    + [f"torch {kind}Storage" for kind in ("BFloat16", "Double", "Float", "Half", "Int", "Long")]
)
"""All that the program of a state_dict calls."""


def load_published(model: Model, path: str | Path) -> Model:
    """Copy the weights and BatchNorm statistics of a published file into `model`, in place, and return it.

    `path` is a `.safetensors` file, or the zip file that `torch.save` writes of a `state_dict`. Tensors are matched by
    name without the wrappers' `.op`; if the names differ from the model's, tensor by tensor in their order, which only
    a torch file keeps. `weightS` dummies are passed over, `num_batches_tracked` may be missing. The dtype and the
    device of the model stay. If anything does not fit, the model is as it was.

    Raises:
        StoreError: there is no such file.
        CorruptError: the file is neither kind, is damaged, is compressed, or holds more than tensors.
        LayoutError: a name, a number of tensors, a shape or a kind of number is not the model's, or the model is on
            the meta device.
        NonFiniteError: a weight is NaN or infinite.
    """
    path = Path(path)
    stored = _open(path)
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise LayoutError("the model is on the meta device and has no memory; build it on a real one")
    sources = _match(stored, {name: tuple(tensor.shape) for name, tensor in own.items()}, path)
    for name, source in sources.items():
        _check(own[name], stored.read(source), f"{path}: '{source}'")
    with torch.no_grad():
        for name, source in sources.items():
            own[name].copy_(stored.read(source))
    return model


class Stored(NamedTuple):
    """The tensors of a file without dummies: their shapes, how to read one, and whether their order means something."""

    shapes: Shapes
    read: Callable[[str], Tensor]
    ordered: bool


def _open(path: Path) -> Stored:
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        tensors = _torch_tensors(path)
        shapes, read = {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__
    else:
        arrays = ArrayFile(path)
        shapes, read = arrays.shapes, arrays.read
    kept = {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] != DUMMY}
    return Stored(kept, read, ordered=start == b"PK\x03\x04")


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `torch.save`d state_dict, mapped from the file, after a look at what it would call."""
    try:
        with zipfile.ZipFile(path) as archive:
            programs = [member for member in archive.infolist() if member.filename.split("/")[-1] == "data.pkl"]
            if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM:
                raise CorruptError(f"{path}: not a state_dict written by torch.save")
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise CorruptError(f"{path}: compressed members; torch.save writes none")
            program = archive.read(programs[0])
        called = {str(argument) for code, argument, _ in pickletools.genops(program) if code.name == "GLOBAL"}
        if foreign := sorted(called - BUILDERS):
            raise CorruptError(
                f"{path}: not a plain state_dict, it calls {', '.join(foreign)}; save model.state_dict() alone"
            )
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CorruptError:
        raise
    except Exception as error:  # a garbled program can fail in any way
        raise CorruptError(f"{path}: damaged, or not a state_dict: {error}") from error
    if not isinstance(loaded, dict):
        raise CorruptError(f"{path}: holds a {type(loaded).__name__}; wanted a state_dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CorruptError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor; save model.state_dict() alone"
            )
    return loaded


def _match(stored: Stored, wanted: Shapes, path: Path) -> dict[str, str]:
    """Name in the model -> name in the file, all shapes equal."""
    plain = {name.replace(".op.", "."): name for name in stored.shapes}
    needed = [name for name in wanted if not name.endswith(COUNTER)]
    if len(plain) == len(stored.shapes) and set(needed) <= plain.keys() <= wanted.keys():
        matched = {name: plain[name] for name in wanted if name in plain}
    elif stored.ordered:
        matched = _in_order(stored.shapes, {name: wanted[name] for name in needed}, path)
    else:
        missing, unknown = sorted(set(needed) - plain.keys()), sorted(plain.keys() - wanted.keys())
        raise LayoutError(
            f"{path}: of the model's {len(wanted)} tensors {len(missing)} are missing ({_few(missing)}) and "
            f"{len(unknown)} of the file's are unknown ({_few(unknown)}); a .safetensors file is read by name, so "
            "rename its tensors, or build the model it was made for"
        )
    for name, source in matched.items():
        if stored.shapes[source] != wanted[name]:
            raise LayoutError(
                f"{path}: '{source}' is {_size(stored.shapes[source])} where the model's '{name}' is "
                f"{_size(wanted[name])}; build the model the file was made for"
            )
    return matched


def _in_order(stored: Shapes, needed: Shapes, path: Path) -> dict[str, str]:
    found = [name for name in stored if not name.endswith(COUNTER)]
    if len(found) != len(needed):
        raise LayoutError(
            f"{path}: {len(found)} tensors ({_few(found)}) where the model has {len(needed)} ({_few(list(needed))}); "
            "build the model the file was made for"
        )
    for name, source in zip(needed, found, strict=True):
        if name.rpartition(".")[2] != source.rpartition(".")[2]:
            raise LayoutError(
                f"{path}: '{source}' stands where the model has '{name}'; neither the names nor their order agree, so "
                "build the model the file was made for"
            )
    return dict(zip(needed, found, strict=True))


def _check(target: Tensor, source: Tensor, what: str) -> None:
    if target.is_floating_point() != source.is_floating_point():
        raise LayoutError(f"{what} holds {source.dtype} numbers; the model's are {target.dtype}")
    if not bool(torch.isfinite(source).all()):
        raise NonFiniteError(f"{what} has NaN or infinite numbers; the model is unchanged, take another file")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(number) for number in shape) or "one number"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"

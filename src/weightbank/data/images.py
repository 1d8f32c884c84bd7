"""The one value all readers return: labelled images for training and for testing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from weightbank.errors import DataError

LIMIT = 2**30
"""The most bytes of pixels, one byte each, a reader accepts unless told otherwise; float32 takes four times that."""

MAX_NUMBERED_CLASSES = 2**16

Array: TypeAlias = Tensor | NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Images (N, channels, height, width) in [0, 1] with labels 0 .. C-1, and the C class names.

    `train` and `test` are pairs (images, labels), as `Task` takes them.

    Raises:
        DataError: an empty part, wrong shapes or types, pixels that are not finite or not in [0, 1], a label without
            a class name.
    """

    name: str
    train: tuple[Float32[Tensor, "N C H W"], Int64[Tensor, " N"]]
    test: tuple[Float32[Tensor, "M C H W"], Int64[Tensor, " M"]]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_shapes(self.name, self.train, self.test)
        for part, (x, y) in (("train", self.train), ("test", self.test)):
            _check_values(f"{self.name} {part}", x, y, len(self.classes))

    def __repr__(self) -> str:
        counts = f"train={len(self.train[1])}, test={len(self.test[1])}"
        return f"ImageData({self.name!r}, {counts}, shape={self.shape}, classes={len(self.classes)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width


def from_arrays(
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    *,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
) -> ImageData:
    """Return `ImageData` of pairs (images, labels), each a numpy array or a tensor.

    Args:
        train: images (N, height, width) or (N, channels, height, width), uint8 (divided by 255) or floating point in
            [0, 1]; labels (N,) of any integer type. Contiguous float32 images are shared, not copied.
        test: the same.
        name: what reports call it.
        classes: one name per label; by default the labels themselves, "0", "1", ...

    Raises:
        DataError: as `ImageData`, and for channels in the last dimension.

    >>> rows = np.zeros((3, 8, 8), np.uint8), np.array([0, 1, 1])
    >>> from_arrays(rows, rows, name="blank")
    ImageData('blank', train=3, test=3, shape=(1, 8, 8), classes=2)
    """
    train, test = _tensors(train, f"{name} train"), _tensors(test, f"{name} test")
    _check_shapes(name, train, test)
    if classes is None:
        classes = _numbered(name, max(int(train[1].max()), int(test[1].max())))
    return ImageData(name, train, test, tuple(classes))


def _tensors(pair: tuple[Array, Array], what: str) -> tuple[Tensor, Tensor]:
    return _pixels(_tensor(pair[0]), what), _labels(_tensor(pair[1]), what)


def _tensor(array: Array) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(native if native.flags.writeable else native.copy())
    except TypeError:
        raise DataError(f"an array of {array.dtype} came; wanted numbers") from None


def _pixels(x: Tensor, what: str) -> Tensor:
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4:
        raise DataError(f"{what}: images of shape {tuple(x.shape)}; wanted (N, H, W) or (N, C, H, W)")
    if x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise DataError(
            f"{what}: images of shape {tuple(x.shape)} have their channels last; wanted (N, C, H, W): "
            "x.permute(0, 3, 1, 2), or x.transpose(0, 3, 1, 2) in numpy"
        )
    if x.dtype == torch.uint8:
        return x.to(torch.float32).div_(255)
    if not x.is_floating_point():
        raise DataError(f"{what}: pixels are {x.dtype}; wanted uint8 in 0 .. 255 or floating point in [0, 1]")
    return x.to(torch.float32).contiguous()


def _labels(y: Tensor, what: str) -> Tensor:
    if y.ndim != 1:
        raise DataError(f"{what}: labels of shape {tuple(y.shape)}; wanted (N,)")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(f"{what}: labels are {y.dtype}; wanted integers")
    return y.to(torch.int64)


def _numbered(name: str, largest: int) -> tuple[str, ...]:
    if largest >= MAX_NUMBERED_CLASSES:
        raise DataError(
            f"{name}: labels go up to {largest:,} and no class names came; number classes from 0, or give classes="
        )
    return tuple(str(label) for label in range(largest + 1))


def _check_shapes(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    for part, (x, y) in (("train", train), ("test", test)):
        if x.ndim != 4 or y.ndim != 1 or len(x) != len(y) or x.numel() == 0:
            raise DataError(
                f"{name} {part}: images of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}; wanted "
                "(N, C, H, W) and (N,) with N of at least 1"
            )
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{name}: train images have shape {tuple(train[0].shape[1:])} and test images {tuple(test[0].shape[1:])}; "
            "wanted one shape"
        )


def _check_values(what: str, x: Tensor, y: Tensor, classes: int) -> None:
    low, high = (bound.item() for bound in x.aminmax())
    if not (low >= 0 and high <= 1):  # also true of NaN, which aminmax hands on
        raise DataError(
            f"{what}: pixels go from {low:g} to {high:g}; wanted finite ones in [0, 1]: divide by the largest value, "
            "and leave any normalisation to the model"
        )
    first, last = (bound.item() for bound in y.aminmax())
    if first < 0 or last >= classes:
        raise DataError(f"{what}: labels go from {first} to {last}; wanted 0 to {classes - 1} for {classes} classes")

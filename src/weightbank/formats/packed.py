"""A tensor in its true number of bits: the codes and scales of one format."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from weightbank.errors import FormatError
from weightbank.formats.format import Format


@dataclass(frozen=True, eq=False)
class Packed:
    """What `Format.pack` returns: plain uint8 and int8 vectors, fit for any file of arrays.

    The codes of all weights follow one another in row-major order without padding, each from its lowest bit on
    (4-bit codes: two to a byte, the lower index in the low nibble); the scales are those of the blocks in order:
    int8 exponents, or uint8 E8M0 (exponent + 127) for microscaling.
    """

    format: Format
    shape: tuple[int, ...]
    codes: UInt8[Tensor, " code_bytes"]
    scales: Int8[Tensor, " blocks"] | UInt8[Tensor, " blocks"]

    @property
    def numel(self) -> int:
        """Weights held."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return self.codes.numel() + self.scales.numel()

    def unpack(self, out: Tensor | None = None) -> Tensor:
        """The values in float32, or in `out` (same shape); raises FormatError when the bytes do not fit the shape."""
        return self.format.unpack(self, out=out)


def check_shape(packed: Packed) -> None:
    """Raise FormatError for a shape with a negative size."""
    if min(packed.shape, default=0) < 0:
        raise FormatError(f"{packed.format!r} of shape {packed.shape} needs sizes which are not negative")


def check_packed(packed: Packed, *, codes: int, scales: int, dtype: torch.dtype = torch.int8) -> None:
    """Raise FormatError unless `packed` holds that many bytes of codes and that many scales of `dtype`."""
    have = (packed.codes.dtype, packed.codes.shape, packed.scales.dtype, packed.scales.shape)
    check_shape(packed)
    if have != (torch.uint8, (codes,), dtype, (scales,)):
        raise FormatError(
            f"{packed.format!r} of shape {packed.shape} needs {codes} bytes of uint8 codes and {scales} scales of "
            f"{dtype}, but has {tuple(packed.codes.shape)} of {packed.codes.dtype} and {tuple(packed.scales.shape)} of "
            f"{packed.scales.dtype}"
        )


def write(values: Float[Tensor, "*shape"], out: Tensor | None) -> Float[Tensor, "*shape"]:
    """`values` as a fresh float32 tensor, or copied into `out`, which must have their shape."""
    if out is None:
        return values.to(torch.float32, copy=True)
    if out.shape != values.shape:
        raise FormatError(f"out is {tuple(out.shape)}, but the packed tensor is {tuple(values.shape)}")
    out.detach().copy_(values)
    return out

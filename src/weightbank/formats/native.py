"""The floating-point types of the machine as formats: float32, bfloat16, float16."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weightbank.errors import FormatError
from weightbank.formats import opaque
from weightbank.formats.finite import (
    check_out,
    check_row,
    check_rows,
    finite_float32,
    key_wanted,
    refuse_beyond,
)
from weightbank.formats.format import Rounding
from weightbank.formats.mini_float import MiniFloat
from weightbank.formats.packed import Packed, check_packed, write

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BITS = {"bfloat16": (8, 7), "float16": (5, 10)}  # of exponent and mantissa


@dataclass(frozen=True, repr=False)
class Native:
    """A native dtype: every weight stands alone; bytes are little-endian.

    Finite values which would become infinite are a FormatError: 65504 is the largest float16. Stochastic rounding
    goes to one of the two neighbours; as float32 has every value of a smaller type, it changes nothing there.
    """

    name: str

    def __post_init__(self) -> None:
        """Raise FormatError for a name that is not a native float."""
        if self.name not in DTYPES:
            raise FormatError(f"{self.name!r} is not a native float; use one of {', '.join(DTYPES)}")

    def __repr__(self) -> str:
        return f"Native({self.name!r})"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        return DTYPES[self.name]

    @property
    def bits_per_weight(self) -> float:
        """32 or 16."""
        return 8.0 * self.dtype.itemsize

    def quantize(
        self,
        x: Float[Tensor, "*shape"],
        *,
        rounding: Rounding = "nearest",
        key: int | None = None,
        out: Tensor | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Round `x` to this dtype, in its own dtype; see `Format.quantize`."""
        random = key_wanted(x, rounding, key)
        if out is not None:
            check_out(x, out)
        if torch.compiler.is_compiling():
            values = opaque.quantize(x, repr(self), rounding, random)
            return values if out is None else write(values, out)
        values = self._cast(x, random)
        if out is None:
            return values.to(x.dtype) if values.dtype != x.dtype else values.clone()
        out.detach().copy_(values)
        return out

    def pack(self, x: Float[Tensor, "*shape"], *, rounding: Rounding = "nearest", key: int | None = None) -> Packed:
        """The raw bytes of `x` in this dtype, no scales; see `Format.pack`."""
        flat = self._cast(x, key_wanted(x, rounding, key)).reshape(-1).contiguous()
        scales = torch.empty(0, dtype=torch.int8, device=x.device)
        codes = flat.view(torch.uint8)
        return Packed(self, tuple(x.shape), codes.clone() if x.dtype == self.dtype else codes, scales)

    def unpack(self, packed: Packed, *, out: Tensor | None = None) -> Tensor:
        """The float32 values; raises FormatError when the byte counts do not fit the shape."""
        code_bytes, scales = self.packed_bytes(packed.shape)
        check_packed(packed, codes=code_bytes, scales=scales)
        return write(_typed(packed.codes[None], self.dtype).reshape(packed.shape), out)

    def packed_bytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of a packed tensor of this shape; no scales."""
        return self.row_bytes(math.prod(shape)), 0

    @property
    def columns(self) -> int:
        """1: any column can be read alone."""
        return 1

    def row_bytes(self, size: int) -> int:
        """Bytes of a row of `size` columns."""
        return size * self.dtype.itemsize

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Byte offset and length, within a row, of the columns `start` up to `stop`."""
        if not 0 <= start <= stop:
            raise FormatError(f"columns {start} up to {stop} are not a span; give 0 <= start <= stop")
        return start * self.dtype.itemsize, (stop - start) * self.dtype.itemsize

    def encode_row(self, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
        """Write the bytes of `x` into `out`; reads x twice, no temporary. Raises NonFiniteError, FormatError."""
        check_row(x, out, self.row_bytes(x.numel()))
        x = x.detach()
        refuse_beyond(x, self.dtype)
        if self.dtype == torch.float32:
            out.copy_(x.view(torch.uint8))
        elif out.storage_offset() % self.dtype.itemsize == 0:
            out.view(self.dtype).copy_(x)
        else:
            out.copy_(x.to(self.dtype).view(torch.uint8))

    def decode_rows(self, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
        """Read R spans of bytes into float32; no temporary when rows are aligned to the dtype."""
        check_rows(raw, out, self.row_bytes(out.shape[1]))
        out.copy_(_typed(raw, self.dtype))

    def _cast(self, x: Tensor, key: int | None) -> Tensor:
        values = finite_float32(x, self.dtype)
        if key is not None and self.name in BITS:
            values = MiniFloat(*BITS[self.name]).quantize(values, rounding="stochastic", key=key)
        return values.to(self.dtype)


def _typed(raw: UInt8[Tensor, "R B"], dtype: torch.dtype) -> Float[Tensor, "R W"]:
    """`raw` seen as `dtype`, copied only where it is not aligned."""
    size = dtype.itemsize
    if raw.numel() == 0:
        return torch.empty(raw.shape[0], raw.shape[1] // size, dtype=dtype)
    if raw.storage_offset() % size or (raw.shape[0] > 1 and raw.stride(0) % size) or raw.stride(1) != 1:
        raw = raw.clone(memory_format=torch.contiguous_format)
    elif raw.stride(0) % size:  # one row: its stride means nothing, but torch asks
        raw = raw.as_strided(raw.shape, (raw.shape[1], 1))
    return raw.view(dtype)

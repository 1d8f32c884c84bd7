"""Codes of 2 to 16 bits one behind the other in bytes, the lowest bit first: no padding between codes."""

import math

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from weightbank.errors import FormatError


def group(bits: int) -> int:
    """The fewest codes which fill whole bytes: 1, 2, 4 or 8."""
    return 8 // math.gcd(bits, 8)


def pack_codes(code: Int32[Tensor, "N B"], bits: int) -> UInt8[Tensor, "N code_bytes"]:
    """The lowest `bits` bits of every code; B must be a multiple of `group(bits)`."""
    count = group(bits)
    if code.shape[1] % count:
        raise FormatError(f"{code.shape[1]} codes of {bits} bits fill no whole bytes; give a multiple of {count}")
    if bits == 8:
        return code.to(torch.uint8)
    parts = (code & ((1 << bits) - 1)).view(len(code), code.shape[1] // count, count)
    packed = torch.zeros(len(code), parts.shape[1], count * bits // 8, dtype=torch.uint8, device=code.device)
    for number in range(count):
        for byte in range(number * bits // 8, (number * bits + bits + 7) // 8):
            shift = number * bits - byte * 8
            part = parts[:, :, number]
            packed[:, :, byte] |= ((part << shift if shift >= 0 else part >> -shift) & 255).to(torch.uint8)
    return packed.reshape(len(code), code.shape[1] // count * packed.shape[2])


def unpack_codes(packed: UInt8[Tensor, "N code_bytes"], bits: int, *, signed: bool) -> Int32[Tensor, "N B"]:
    """The inverse of `pack_codes`, in two's complement if `signed`."""
    count = group(bits)
    if bits == 8:
        return (packed.view(torch.int8) if signed else packed).to(torch.int32)
    size = count * bits // 8
    parts = packed.reshape(len(packed), packed.shape[1] // size, size)
    code = torch.zeros(len(packed), parts.shape[1], count, dtype=torch.int32, device=packed.device)
    for number in range(count):
        for byte in range(number * bits // 8, (number * bits + bits + 7) // 8):
            shift = number * bits - byte * 8
            part = parts[:, :, byte].to(torch.int32)
            code[:, :, number] |= part >> shift if shift >= 0 else part << -shift
    code &= (1 << bits) - 1
    if signed:
        code = (code ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return code.view(len(packed), parts.shape[1] * count)

"""Rows of tiles in plain torch: the codes of a tile, then its scale in one byte, if there are scales."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weightbank.formats.bits import pack_codes, unpack_codes
from weightbank.formats.finite import refuse_nonfinite
from weightbank.formats.grids import Grid, Scale, Whole

PIECE = 1 << 18  # weights decoded at a time
UPPER = -0xF10  # 0xF0F0 in 16 bits


def encode(grid: Grid, scale: Scale, tile: int, x: Float[Tensor, " P"], out: UInt8[Tensor, " B"]) -> None:
    """Write the row `x`; its last tile is padded with zero codes. Raises NonFiniteError."""
    refuse_nonfinite(x)
    if x.numel() == 0:
        return
    tiles = torch.nn.functional.pad(x, (0, -x.numel() % tile)).view(-1, tile)
    exponent = scale.exponents(tiles)
    packed = out.view(len(tiles), -1)
    size = tile * grid.bits // 8
    packed[:, :size] = pack_codes(grid.codes(tiles, exponent, None, torch.float32), grid.bits)
    if not scale.constant:
        packed[:, size] = scale.to_bytes(exponent).view(torch.uint8)


def decode(grid: Grid, scale: Scale, tile: int, raw: UInt8[Tensor, "R B"], out: Float[Tensor, "R W"]) -> None:
    """Read R rows of tiles, piece by piece in place: temporaries of a few MB, however long the rows are."""
    if out.numel() == 0:
        return
    size = tile * grid.bits // 8 + (not scale.constant)
    step = max(PIECE // len(out) // tile, 1)
    for first in range(0, -(-out.shape[1] // tile), step):
        piece, part = raw[:, first * size : (first + step) * size], out[:, first * tile : (first + step) * tile]
        tiles, whole = piece.view(len(raw), piece.shape[1] // size, size), part.shape[1] // tile
        _decode(grid, scale, tiles[:, :whole], part[:, : whole * tile].view(len(out), whole, tile))
        if whole < tiles.shape[1]:  # the end of the rows
            last = torch.empty(len(out), 1, tile)
            _decode(grid, scale, tiles[:, whole:], last)
            part[:, whole * tile :] = last[:, 0, : part.shape[1] - whole * tile]


def _decode(grid: Grid, scale: Scale, tiles: UInt8[Tensor, "R T B"], out: Float[Tensor, "R T W"]) -> None:
    """Read whole tiles."""
    if tiles.shape[1] == 0:
        return
    codes, fraction = tiles if scale.constant else tiles[:, :, :-1], 0
    if isinstance(grid, Whole) and grid.bits in (4, 8):
        fraction = grid.fraction + 8 - grid.bits
        if grid.bits == 4:  # each into the upper half of a byte of its own
            pairs = codes.to(torch.int16)
            codes = (pairs << 4).bitwise_or_(pairs << 8).bitwise_and_(UPPER).view(torch.uint8)
        out.copy_(codes.view(torch.int8))
    else:
        code = unpack_codes(codes.flatten(0, 1), grid.bits, signed=grid.signed)
        out.copy_(grid.numbers(code).view(out.shape))
    if not scale.constant:
        stored = tiles[:, :, -1].to(torch.int32)
        out.mul_(scale.power_table(fraction).index_select(0, stored.view(-1)).view(*stored.shape, 1))
    elif fraction:
        out.mul_(2.0**-fraction)

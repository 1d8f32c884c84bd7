"""A format from what people write: a Format, a torch dtype, a short name, or a repr; nothing is ever evaluated."""

import ast
import re
from collections.abc import Callable, Mapping

import torch

from weightbank.errors import FormatError
from weightbank.formats.block_floating_point import BlockFloatingPoint
from weightbank.formats.blocks import ByDimensions, Per, Tile
from weightbank.formats.fixed_point import FixedPoint
from weightbank.formats.format import Format
from weightbank.formats.microscaling import ELEMENTS, Microscaling
from weightbank.formats.mini_float import MiniFloat
from weightbank.formats.mixed import Mixed
from weightbank.formats.native import DTYPES, Native

SHORT: dict[str, Format] = {
    "fp32": Native("float32"),
    "bf16": Native("bfloat16"),
    "fp16": Native("float16"),
    "bfp8": BlockFloatingPoint(8, block=64),
    "bfp6": BlockFloatingPoint(6, block=32),
    "bfp5": BlockFloatingPoint(5, block=32),
    "bfp4": BlockFloatingPoint(4, block=32),
    "fp8_e4m3": MiniFloat(4, 3, specials="nan"),
    "fp8_e5m2": MiniFloat(5, 2),
    "fp6_e3m2": MiniFloat(3, 2, specials="none"),
    "fp6_e2m3": MiniFloat(2, 3, specials="none"),
    "fp4_e2m1": MiniFloat(2, 1, specials="none"),
    **{name: Microscaling(name) for name in ELEMENTS},
}
FORMATS: dict[str, Callable[..., Format]] = {
    "Native": Native,
    "BlockFloatingPoint": BlockFloatingPoint,
    "FixedPoint": FixedPoint,
    "MiniFloat": MiniFloat,
    "Microscaling": Microscaling,
}
BLOCKS: dict[str, Callable[..., object]] = {"Per": Per, "Tile": Tile, "ByDimensions": ByDimensions}
LONGEST = 200  # characters; a longer text is not a format
MIXED = re.compile(r"Mixed\(\((.{1,3600})\), '([0-9a-z]{1,1000000})'\)")


def format_of(spec: Format | torch.dtype | str) -> Format:
    """The format meant by `spec`.

    Accepts a Format (returned as it is), torch.float32, torch.bfloat16 or torch.float16, the repr of a format, or a
    short name: fp32, bf16, fp16; bfp8 (blocks of 64), bfp6, bfp5, bfp4 (blocks of 32); fp8_e4m3, fp8_e5m2, fp6_e3m2,
    fp6_e2m3, fp4_e2m1; and with a scale for every 32 weights mxint8, mxfp8_e4m3, mxfp8_e5m2, mxfp6_e3m2, mxfp6_e2m3,
    mxfp4_e2m1. Anything else is a FormatError.

    >>> format_of("bfp8")
    BlockFloatingPoint(8, block=64)
    >>> format_of(torch.bfloat16) == format_of("Native('bfloat16')")
    True
    >>> format_of("BlockFloatingPoint(8, block=ByDimensions())").block
    ByDimensions()
    """
    if isinstance(spec, str):
        return SHORT[spec] if spec in SHORT else _parse(spec)
    if isinstance(spec, torch.dtype):
        for name, dtype in DTYPES.items():
            if spec == dtype:
                return Native(name)
    elif isinstance(spec, Format):
        return spec
    raise _refusal(spec)


def _parse(text: str) -> Format:
    """`Class(value, name=value)` for the formats above; a value is a literal, or one of the blocks above."""
    mixed = MIXED.fullmatch(text)
    try:
        if mixed is not None:
            formats = ast.parse(f"[{mixed[1]}]", mode="eval").body
            if not isinstance(formats, ast.List):
                raise ValueError("not a tuple of formats")
            parts = [_call(node, FORMATS) for node in formats.elts]
            return Mixed(tuple(part for part in parts if isinstance(part, Format)), mixed[2])
        node = ast.parse(text if len(text) <= LONGEST else "", mode="eval").body
        made = _call(node, FORMATS)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise _refusal(text) from error
    assert isinstance(made, Format)
    return made


def _call(node: ast.expr, classes: Mapping[str, Callable[..., object]]) -> object:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in classes:
        raise ValueError("not a call of a known class")
    args = [_value(arg) for arg in node.args]
    named = {str(word.arg): _value(word.value) for word in node.keywords}
    return classes[node.func.id](*args, **named)


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call):
        return _call(node, BLOCKS)
    sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
    literal = node.operand if isinstance(node, ast.UnaryOp) and sign < 0 else node
    if not isinstance(literal, ast.Constant) or not isinstance(literal.value, int | str | None):
        raise ValueError("not a whole number, a string, None or blocks")
    if sign > 0:
        return literal.value
    if not isinstance(literal.value, int):
        raise ValueError("not a whole number")
    return -literal.value


def _refusal(spec: object) -> FormatError:
    shown = repr(spec) if len(repr(spec)) <= LONGEST else repr(spec)[:LONGEST] + "..."
    dtypes = ", ".join(f"torch.{name}" for name in DTYPES)
    return FormatError(
        f"{shown} is not a number format; use one of {', '.join(SHORT)}, one of {dtypes}, "
        "or a text such as Native('bfloat16') or BlockFloatingPoint(8, block=64)"
    )

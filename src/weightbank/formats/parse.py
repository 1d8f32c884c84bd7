"""A format from what people write: a Format, a torch dtype, a short name, or a repr; nothing is ever evaluated."""

import ast
from collections.abc import Callable

import torch

from weightbank.errors import FormatError
from weightbank.formats.block_floating_point import BlockFloatingPoint
from weightbank.formats.format import Format
from weightbank.formats.native import DTYPES, Native

SHORT: dict[str, Format] = {
    "fp32": Native("float32"),
    "bf16": Native("bfloat16"),
    "fp16": Native("float16"),
    "bfp8": BlockFloatingPoint(8, block=64),
    "bfp4": BlockFloatingPoint(4, block=32),
}
CLASSES: dict[str, Callable[..., Format]] = {"Native": Native, "BlockFloatingPoint": BlockFloatingPoint}
LONGEST = 200  # characters; a longer text is not a format


def format_of(spec: Format | torch.dtype | str) -> Format:
    """The format meant by `spec`.

    Accepts a Format (returned as it is), torch.float32, torch.bfloat16 or torch.float16, one of the short names
    fp32, bf16, fp16, bfp8 (blocks of 64) and bfp4 (blocks of 32), or the repr of a format. Anything else is a
    FormatError.

    >>> format_of("bfp8")
    BlockFloatingPoint(8, block=64)
    >>> format_of(torch.bfloat16) == format_of("Native('bfloat16')")
    True
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
    """`Class(literal, name=literal)` for the classes above."""
    try:
        node = ast.parse(text if len(text) <= LONGEST else "", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in CLASSES:
            raise _refusal(text)
        args = [_literal(arg) for arg in node.args]
        named = {str(word.arg): _literal(word.value) for word in node.keywords}
        return CLASSES[node.func.id](*args, **named)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise _refusal(text) from error


def _literal(node: ast.expr) -> int | str | None:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, int | str | None):
        raise ValueError("not a whole number, a string or None")
    return node.value


def _refusal(spec: object) -> FormatError:
    shown = repr(spec) if len(repr(spec)) <= LONGEST else repr(spec)[:LONGEST] + "..."
    dtypes = ", ".join(f"torch.{name}" for name in DTYPES)
    return FormatError(
        f"{shown} is not a number format; use one of {', '.join(SHORT)}, one of {dtypes}, "
        "or a text such as Native('bfloat16') or BlockFloatingPoint(8, block=64)"
    )

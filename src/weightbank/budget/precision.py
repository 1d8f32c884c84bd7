"""Mixed precision under a byte budget: which parameter tensor, or which row of it, gets which number format."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from weightbank.budget.allocation import Options, allocate
from weightbank.errors import DataError, FormatError
from weightbank.formats import Format, Mixed, format_of
from weightbank.formats.mixed import DIGITS
from weightbank.layout import Layout
from weightbank.types import Flat


def format_options(theta: Flat, layout: Layout, curvature: Flat, formats: Sequence[Format | str]) -> Options:
    """What each of M formats costs each of the G parameter tensors, in loss and in "bytes".

    The increase is ½ Σ h (Q(θ) - θ)² with nearest rounding; the bytes are those of the packed codes and scales.

    Args:
        theta: the trained weights, shape (P,).
        layout: of them; a place is one of its parameters.
        curvature: h, shape (P,), loss per example and squared weight; negative values count as 0.
        formats: formats that can be packed, or their short names.

    Raises `LayoutError` for other shapes, `FormatError` for a format that cannot be stored.
    """
    layout.check(theta)
    layout.check(curvature)
    if not formats:
        raise DataError("no formats came; wanted at least one")
    increase = torch.zeros(len(layout.entries), len(formats), dtype=torch.float64)
    bytes = torch.zeros_like(increase)
    for place, entry in enumerate(layout.entries):
        span = slice(entry.offset, entry.offset + entry.size)
        weights, worth = theta[span].view(entry.shape), curvature[span].double().clamp(min=0)
        for way, format in enumerate(formats):
            packed = format_of(format).pack(weights)
            error = packed.unpack().reshape(-1).double() - weights.reshape(-1).double()
            increase[place, way] = 0.5 * (worth @ error.square())
            bytes[place, way] = packed.nbytes
    return Options(increase, {"bytes": bytes})


def mixed_precision(
    theta: Flat,
    layout: Layout,
    curvature: Flat,
    *,
    bytes: float,
    formats: Sequence[Format | str],
    by: Literal["tensor", "row"] = "tensor",
) -> Mapping[str, Format]:
    """The format of each parameter, by name, so that the expected loss is least within `bytes` bytes.

    by: "tensor", one format for each parameter, or "row", one for each index of a parameter's first dimension (an
        output channel), a `Mixed` format; a vector is one row. By row each row also costs a byte that names its format.

    `weightbank.pack` takes the result as its format. Raises as `format_options`, `CapacityError` when the smallest
    formats do not fit, and by row `FormatError` for formats whose blocks span rows.

    >>> layout = Layout.of(torch.nn.Linear(64, 10))
    >>> h = torch.cat([torch.full((640,), 1e-3), torch.ones(10)])  # biases matter more
    >>> chosen = mixed_precision(torch.linspace(-1, 1, 650), layout, h, bytes=400, formats=["bfp4", "bf16"])
    >>> {name: repr(format) for name, format in chosen.items()}
    {'weight': 'BlockFloatingPoint(4, block=32)', 'bias': "Native('bfloat16')"}
    """
    if by == "tensor":
        found = allocate(format_options(theta, layout, curvature, formats), {"bytes": bytes})
        return {
            entry.name: format_of(formats[int(way)]) for entry, way in zip(layout.entries, found.choice, strict=True)
        }
    if by != "row":
        raise DataError(f"by={by!r} came; wanted 'tensor' or 'row'")
    parts = [row_format_options(theta, layout, curvature, entry.name, formats) for entry in layout.entries]
    options = Options(
        torch.cat([part.increase for part in parts]), {"bytes": torch.cat([part.costs["bytes"] for part in parts])}
    )
    found = allocate(options, {"bytes": bytes - len(formats) * len(parts)})  # codes end on whole bytes
    choices = torch.split(found.choice, [len(part.increase) for part in parts])
    return {
        entry.name: _of_rows(choice.tolist(), formats) for entry, choice in zip(layout.entries, choices, strict=True)
    }


def row_format_options(
    theta: Flat, layout: Layout, curvature: Flat, name: str, formats: Sequence[Format | str]
) -> Options:
    """What each of M formats costs each row (index of the first dimension) of parameter `name`; a vector is one row.

    As `format_options`, with a byte more for each row, which names its format. Raises also `FormatError` for formats
    whose blocks span rows.
    """
    layout.check(theta)
    layout.check(curvature)
    span, entry = layout.slice(name), layout.entries[layout.names.index(name)]
    weights, worth = theta[span].view(entry.shape), curvature[span].view(entry.shape).double().clamp(min=0)
    rows = entry.shape[0] if len(entry.shape) > 1 and entry.size else 1
    increase = torch.zeros(rows, len(formats), dtype=torch.float64)
    bytes = torch.zeros_like(increase)
    for way, format in enumerate(map(format_of, formats)):
        packed = format.pack(weights)
        alone = format.pack(weights[:1]).scales.numel() if rows > 1 else packed.scales.numel()
        if rows > 1 and alone * rows != packed.scales.numel():
            raise FormatError(f"{format!r} has blocks of several rows of '{name}'; use block=ByDimensions() or tiles")
        error = packed.unpack().double() - weights.double()
        increase[:, way] = 0.5 * (worth * error.square()).reshape(rows, -1).sum(1)
        bytes[:, way] = packed.nbytes / rows + 1
    return Options(increase, {"bytes": bytes})


def _of_rows(ways: list[int], formats: Sequence[Format | str]) -> Format:
    """One format where all rows have the same, otherwise those used in the order in which they were given."""
    used = sorted(set(ways))
    chosen = tuple(format_of(formats[way]) for way in used)
    return chosen[0] if len(used) == 1 else Mixed(chosen, "".join(DIGITS[used.index(way)] for way in ways))

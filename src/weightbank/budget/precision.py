"""Mixed precision under a byte budget: which parameter tensor gets which number format."""

from collections.abc import Mapping, Sequence

import torch

from weightbank.budget.allocation import Options, allocate
from weightbank.errors import DataError
from weightbank.formats import Format, format_of
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
    theta: Flat, layout: Layout, curvature: Flat, *, bytes: float, formats: Sequence[Format | str]
) -> Mapping[str, Format]:
    """The format of each parameter, by name, so that the expected loss is least within `bytes` bytes.

    `weightbank.pack` takes the result as its format. Raises as `format_options`, and `CapacityError` when the
    smallest formats do not fit.

    >>> layout = Layout.of(torch.nn.Linear(64, 10))
    >>> h = torch.cat([torch.full((640,), 1e-3), torch.ones(10)])  # biases matter more
    >>> chosen = mixed_precision(torch.linspace(-1, 1, 650), layout, h, bytes=400, formats=["bfp4", "bf16"])
    >>> {name: repr(format) for name, format in chosen.items()}
    {'weight': 'BlockFloatingPoint(4, block=32)', 'bias': "Native('bfloat16')"}
    """
    options = format_options(theta, layout, curvature, formats)
    found = allocate(options, {"bytes": bytes})
    return {entry.name: format_of(formats[int(way)]) for entry, way in zip(layout.entries, found.choice, strict=True)}

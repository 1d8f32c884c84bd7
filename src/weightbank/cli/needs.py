"""What each of the four jobs needs for a model, in bytes, cells, pulses and positions, from its layout alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from weightbank.cim import Device, WriteVerify
from weightbank.evaluation.forward import has_running_statistics
from weightbank.formats import Format, format_of
from weightbank.layout import Layout, everything
from weightbank.lowprecision import Precision
from weightbank.posterior import plan
from weightbank.sizes import parse_bytes

FORMATS = ("fp32", "bf16", "bfp8", "bfp4")
"""Of rows and of positions."""

GIGABYTE = parse_bytes("1 GB")
BITS = 8
"""Of the device's weights, on cells of one bit, and of the training."""


def facts_of(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """What a model is made of, as far as the jobs care."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    total, tied = Layout.of(model, where=everything).size, len(names) - len(list(model.parameters()))
    buffers = list(model.buffers())
    statistics = sum(has_running_statistics(module) for module in model.modules() if not list(module.children()))
    dropouts = sum(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules())
    notes = {
        "averages and draws need fresh BatchNorm statistics, which evaluation collects": statistics,
        "dropout is off wherever a law is evaluated": dropouts,
        "frozen weights stay in the model: no job touches them": total - layout.size,
        "tied tensors are there once": tied,
    }
    return {
        "model": {
            "class": type(model).__name__,
            "layout": layout.fingerprint,
            "weights": layout.size,
            "tensors": len(layout.entries),
            "dtype": str(layout.dtype).removeprefix("torch."),
            "bytes": _bytes(layout),
            "frozen_weights": total - layout.size,
            "tied_names": tied,
            "buffers": len(buffers),
            "buffer_bytes": sum(buffer.nbytes for buffer in buffers),
            "batch_norm_layers": statistics,
            "dropout_layers": dropouts,
            "notes": [note for note, count in notes.items() if count],
        }
    }


def needs_of(layout: Layout, model: nn.Module | None = None) -> dict[str, Any]:
    """What each job would need. Takes memory for the largest tensor of the layout, twice."""
    return {
        "posterior": _posterior(layout),
        "noisy_device": _device(layout),
        "training": _training(layout),
        "pool": _pool(layout, model),
    }


def _posterior(layout: Layout) -> dict[str, Any]:
    """Rows of each format: alone, padded with their record as a log keeps them, and how many a gigabyte takes."""
    rows = []
    for name in FORMATS:
        planned = plan(layout, iterates=1, format=name)
        each = planned.bytes_per_iterate
        rows.append(
            {
                "format": name,
                "row_bytes": planned.format.row_bytes(layout.size),
                "bytes_per_iterate": each,
                "rows_per_gb": GIGABYTE // each,
                "memory_to_record_bytes": planned.memory["record"],
            }
        )
    return {"formats": rows}


def _device(layout: Layout) -> dict[str, Any]:
    """Cells of the usual device and the expected pulses to verify each of them."""
    device = Device(weight_bits=BITS, cell_bits=1)
    on_device = int(device.on_device(layout).sum())
    cells = on_device * device.cells * device.sides
    assert isinstance(device.sigma, float)
    full = WriteVerify.matching(device).outcome(device.sigma).effort(cells)
    return {
        "weight_bits": device.weight_bits,
        "cell_bits": device.cell_bits,
        "sigma": device.sigma,
        "verified_sigma": device.verified_sigma,
        "weights_on_device": on_device,
        "digital_weights": layout.size - on_device,
        "cells": cells,
        "pulses_unverified": cells,
        "pulses_all_verified": round(full.pulses),
        "reads_all_verified": round(full.reads),
    }


def _training(layout: Layout) -> dict[str, Any]:
    """Bytes kept between steps of SGD with momentum in 8 bits: simulated in floats, or with the momentum packed."""
    formats = Precision.swalp(BITS).formats
    own = _bytes(layout)
    assert formats.momentum is not None
    assert formats.weights is not None
    momentum = _packed(layout, formats.momentum)
    ways = [("simulated", own), ("packed", momentum)]
    state = [
        {"state": way, "weights_bytes": own, "momentum_bytes": kept, "all_bytes": own + kept} for way, kept in ways
    ]
    return {"bits": BITS, "file_of_the_result_bytes": _packed(layout, formats.weights), "state": state}


def _pool(layout: Layout, model: nn.Module | None) -> dict[str, Any]:
    """Positions, should nothing be shared, their bytes, and what is kept beside them."""
    beside = None if model is None else _beside(model, layout)
    each = [{"format": name, "bytes": format_of(name).row_bytes(layout.size)} for name in FORMATS]
    facts = {"positions": layout.size, "beside_bytes": beside, "importance_bytes": 2 * layout.size}
    return {**facts, "formats": each}


def _beside(model: nn.Module, layout: Layout) -> int:
    """Bytes of buffers and of parameters outside the layout, which a pool keeps unshared."""
    inside = set(layout.names)
    rest: Mapping[str, torch.Tensor] = {name: part for name, part in model.named_parameters() if name not in inside}
    return sum(part.nbytes for part in rest.values()) + sum(buffer.nbytes for buffer in model.buffers())


def _bytes(layout: Layout) -> int:
    return sum(entry.size * entry.dtype.itemsize for entry in layout.entries)


def _packed(layout: Layout, format: Format) -> int:
    """Bytes of codes and scales, which depend on shapes alone."""
    sizes: dict[tuple[int, ...], int] = {}
    for entry in layout.entries:
        if entry.shape not in sizes:
            sizes[entry.shape] = format.pack(torch.zeros(entry.shape)).nbytes
    return sum(sizes[entry.shape] for entry in layout.entries)

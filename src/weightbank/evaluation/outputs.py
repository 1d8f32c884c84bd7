"""Model outputs and targets as rows: one row of log-probabilities, or of numbers, per labelled example."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightbank.errors import DataError

IGNORED = -100
"""The label of positions that do not count, as in `torch.nn.functional.cross_entropy`."""


def tensor_of(output: Any) -> Tensor:
    """The output itself, or its `.logits`; `DataError` for anything else."""
    if not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise DataError(f"the model returned a {type(output).__name__}; wanted a tensor or an object with .logits")
    return output


def class_axis(output: Tensor, target: Tensor) -> int:
    """Where the classes stand: 1 for (N, C) and (N, C, ...), as `cross_entropy` has it, else -1 for (N, ..., C).

    When both fit, as for (N, 7, 7) with (N, 7), it is 1. Raises `DataError` with both shapes if neither fits.
    """
    shape, labels = tuple(output.shape), tuple(target.shape)
    if len(shape) == len(labels) + 1 and shape[:1] == labels[:1]:
        if shape[2:] == labels[1:] and shape[1] > 1:
            return 1
        if shape[1:-1] == labels[1:] and shape[-1] > 1:
            return -1
    raise DataError(
        f"outputs of shape {shape} came with integer targets of shape {labels}; wanted (N, C) for (N,), or (N, C, ...) "
        "or (N, ..., C) for (N, ...), with C of 2 or more classes; make targets floating for regression"
    )


def log_probabilities(output: Tensor, axis: int) -> Float[Tensor, "N C"]:
    """Log-softmax in float64 in main memory, one row per position.

    Log-probabilities pass through unchanged: log-softmax of a log-softmax is itself.
    """
    rows = output.detach().movedim(axis, -1).flatten(0, -2).cpu()
    return rows.double().log_softmax(-1)


def labelled(output: Tensor, target: Tensor, axis: int) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
    """Log-probability rows and labels of the positions that are not `IGNORED`."""
    if class_axis(output, target) != axis and output.movedim(axis, -1).shape[:-1] != target.shape:
        raise DataError(
            f"outputs of shape {tuple(output.shape)} came with targets of shape {tuple(target.shape)}, "
            f"but in the first batch the classes stood on axis {axis}"
        )
    rows, labels = log_probabilities(output, axis), target.cpu().long().flatten()
    counts = labels != IGNORED
    if not bool(counts.all()):
        rows, labels = rows[counts], labels[counts]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < rows.shape[1]:
        raise DataError(
            f"class indices from {int(labels.min())} to {int(labels.max())} came, but the model's outputs have "
            f"{rows.shape[1]} classes (0 to {rows.shape[1] - 1}); {IGNORED} marks positions to ignore"
        )
    return rows, labels


def numbers(output: Tensor, target: Tensor) -> tuple[Float[Tensor, "N *D"], Float[Tensor, "N *D"]]:
    """Regression outputs and targets in float64 in main memory; (N, 1) outputs fit (N,) targets.

    Infinite outputs become NaN, so that one check finds both.
    """
    if output.shape == (*target.shape, 1):
        output = output[..., 0]
    if output.shape != target.shape or output.ndim == 0:
        raise DataError(
            f"outputs of shape {tuple(output.shape)} came with floating targets of shape {tuple(target.shape)}; "
            "wanted equal shapes for regression, or integer targets for classes"
        )
    rows = output.detach().cpu().double()
    return rows.masked_fill(~rows.isfinite(), torch.nan), target.cpu().double()

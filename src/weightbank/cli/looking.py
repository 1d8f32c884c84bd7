"""What recorded posteriors hold and predict, and how they leave their directory."""

from pathlib import Path
from typing import Any

import torch

from weightbank.cli.runs import rows_place, task_of
from weightbank.cli.settings import RUN_FILE, Settings
from weightbank.data import ImageData, load, photo_patches
from weightbank.distributions import Gaussian, Moments
from weightbank.errors import DataError, StoreError
from weightbank.formats import Native, format_of
from weightbank.posterior import Compared, compare, compare_law, last_weights
from weightbank.store import RowLog


def open_log(place: Path, *, salvage: bool) -> tuple[RowLog, Settings | None]:
    """The rows of a run's directory, or of a plain log, for reading along."""
    settings = Settings.load(place) if (place / RUN_FILE).exists() else None
    if settings is not None and settings.medium == "memory":
        raise StoreError(f"{place}: this run kept its rows in memory; they are gone with its process")
    where = place if settings is None else rows_place(settings, place)
    return RowLog(where, read_only=True, salvage=salvage), settings


def open_moments(place: Path, *, salvage: bool) -> tuple[Moments, Settings | None]:
    """The recorded moments and rows in a directory, for reading."""
    log, settings = open_log(place, salvage=salvage)
    if log.manifest.layout is None:
        raise StoreError(f"{place}: these rows were recorded without a layout, so nobody knows which weights they are")
    return Moments(log.manifest.layout, rows=log), settings


def foreign_inputs(spec: str | None, data: ImageData | None) -> torch.Tensor | None:
    """Inputs that are not of the task: `photos`, or the test images of another data set."""
    if spec is None:
        return None
    if data is None:
        raise DataError(f"--ood {spec}: the model makes a Task with data of its own; use evaluate(..., ood=inputs)")
    channels, height, width = data.shape
    if spec == "photos":
        if channels != 1 or height != width:
            raise DataError(f"--ood photos makes grey squares; {data.name} has images of {data.shape}; name a data set")
        return photo_patches(1000, height)
    other = load(spec)
    if other.shape != data.shape:
        raise DataError(f"--ood {spec}: images of {other.shape}; the task has {data.shape}")
    return other.test[0]


def describe_posterior(place: Path, *, verify: bool, salvage: bool) -> dict[str, Any]:
    """What `posterior info` shows."""
    log, settings = open_log(place, salvage=salvage)
    manifest, steps = log.manifest, log.journal.steps
    document: dict[str, Any] = {
        "place": repr(log.medium),
        "model": None if settings is None else settings.model,
        "data": None if settings is None else settings.data,
        "weights": manifest.size,
        "rows": len(log),
        "rows_ever": log.count,
        "format": repr(log.format),
        "bits_per_weight": log.format.bits_per_weight,
        "steps": f"{steps[0]} to {steps[-1]}" if len(steps) else None,
        "bytes": log.nbytes,
        "bytes_per_row": manifest.geometry.stride,
        "layout": None if manifest.layout is None else manifest.layout.fingerprint,
        "parameters": None if manifest.layout is None else len(manifest.layout.entries),
    }
    if manifest.layout is not None:
        moments = Moments(manifest.layout, rows=log)
        document |= {"keep": str(moments.keep), "iterates": moments.count}
        if moments.count:
            variance = moments.variance()
            total = float(variance.sum(dtype=torch.float64))
            document["length_of_mean"] = float(moments.mean().double().norm())
            document["trace_of_variance"] = total
            document["spread_per_weight"] = (total / manifest.size) ** 0.5
    if verify:
        document["damaged"] = log.damaged()
    log.close()
    return document


def evaluate_run(place: Path, *, data: str | None, ood: str | None, salvage: bool, **options: Any) -> list[Compared]:
    """Compare the laws of a recorded run."""
    moments, settings = open_moments(place, salvage=salvage)
    if settings is None:
        raise StoreError(
            f"{place}: rows without {RUN_FILE}, so their model and data are not known; "
            f"`weightbank posterior export {place} -o FILE` and evaluate the file with --model and --data"
        )
    task, images = task_of(
        settings.model, settings.data if data is None else data, seed=settings.seed, device=settings.device
    )
    last = last_weights(task, place)
    foreign = foreign_inputs(ood, images)
    return compare(task, moments, last=last, ood=foreign, **options)


def evaluate_file(path: Path, model: str, data: str, *, samples: int, ood: str | None) -> list[Compared]:
    """Evaluate an exported law and its mean."""
    task, images = task_of(model, data)
    return compare_law(task, Gaussian.load(path), path.stat().st_size, samples=samples, ood=foreign_inputs(ood, images))


def export(place: Path, output: Path, *, rank: int | None, dtype: str, salvage: bool) -> dict[str, Any]:
    """Write the SWAG law of a posterior to a file, as it is or compressed."""
    chosen = format_of(dtype)
    if not isinstance(chosen, Native):
        raise StoreError(f"--dtype {dtype}: a .safetensors file holds fp32, bf16 or fp16")
    moments, _ = open_moments(place, salvage=salvage)
    law = moments.gaussian()
    kept = law if rank is None else law.compress(rank)
    kept.save(output, dtype=chosen.dtype)
    size = output.stat().st_size
    share = None
    if rank is not None and law.factor is not None:
        share = float(kept.variance().sum(dtype=torch.float64) / law.variance().sum(dtype=torch.float64))
    return {
        "file": str(output),
        "weights": law.layout.size,
        "rows": kept.rank,
        "of_rows": law.rank,
        "bytes": size,
        "share_of_variance": share,
    }

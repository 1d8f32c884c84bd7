"""Fit more neural networks into less, and less perfect, memory, and know what it costs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightbank.cim import Chip, Device, Plan, program, rank, select, write_verify
    from weightbank.distributions import (
        Gaussian,
        Mixture,
        Moments,
        PackedWeights,
        Patchwork,
        Point,
        Rounded,
        Sketch,
        Snapshots,
        WeightDistribution,
        Window,
        multi,
        pack,
    )
    from weightbank.errors import WeightbankError
    from weightbank.evaluation import Estimate, Evaluation, evaluate
    from weightbank.formats import (
        BlockFloatingPoint,
        ByDimensions,
        FixedPoint,
        Format,
        Microscaling,
        MiniFloat,
        Mixed,
        Native,
        Packed,
        Per,
        Tile,
    )
    from weightbank.layout import Layout, everything, trainable, within
    from weightbank.lowprecision import Precision, pack_by_example
    from weightbank.paging import Pool, convert, tune
    from weightbank.store import RowLog
    from weightbank.task import Task, TensorBatches
    from weightbank.training import epochs

__version__ = "0.1.0"

__all__ = [
    "BlockFloatingPoint",
    "ByDimensions",
    "Chip",
    "Device",
    "Estimate",
    "Evaluation",
    "FixedPoint",
    "Format",
    "Gaussian",
    "Layout",
    "Microscaling",
    "MiniFloat",
    "Mixed",
    "Mixture",
    "Moments",
    "Native",
    "Packed",
    "PackedWeights",
    "Patchwork",
    "Per",
    "Plan",
    "Point",
    "Pool",
    "Precision",
    "Rounded",
    "RowLog",
    "Sketch",
    "Snapshots",
    "Task",
    "TensorBatches",
    "Tile",
    "WeightDistribution",
    "WeightbankError",
    "Window",
    "convert",
    "epochs",
    "evaluate",
    "everything",
    "multi",
    "pack",
    "pack_by_example",
    "program",
    "rank",
    "select",
    "trainable",
    "tune",
    "within",
    "write_verify",
]

# Where the names above live: they are imported when first used, so that the command line starts without torch.
_HOMES = {
    "cim": "Chip Device Plan program rank select write_verify",
    "distributions": "Gaussian Mixture Moments PackedWeights Patchwork Point Rounded Sketch Snapshots "
    "WeightDistribution Window multi pack",
    "errors": "WeightbankError",
    "evaluation": "Estimate Evaluation evaluate",
    "formats": "BlockFloatingPoint ByDimensions FixedPoint Format Microscaling MiniFloat Mixed Native Packed Per Tile",
    "layout": "Layout everything trainable within",
    "lowprecision": "Precision pack_by_example",
    "paging": "Pool convert tune",
    "store": "RowLog",
    "task": "Task TensorBatches",
    "training": "epochs",
}
_PACKAGES = (
    "budget",
    "cim",
    "curvature",
    "data",
    "distributions",
    "evaluation",
    "formats",
    "integrations",
    "lowprecision",
    "paging",
    "posterior",
    "report",
    "store",
    "zoo",
)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names.split():
            value = getattr(import_module(f"weightbank.{home}"), name)
            globals()[name] = value
            return value
    if name in _PACKAGES:
        return import_module(f"weightbank.{name}")
    raise AttributeError(f"module 'weightbank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__"})

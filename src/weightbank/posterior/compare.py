"""What a recorded run predicts under each law it gives: last iterate, SWA, SWAG of several ranks, its own snapshots."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from weightbank.distributions import Gaussian, Moments, Point, Sketch, WeightDistribution
from weightbank.distributions.moments import Covariance
from weightbank.errors import StoreError
from weightbank.evaluation import Estimate, Evaluation, evaluate
from weightbank.evaluation.reader import Foreign
from weightbank.posterior.footprint import disk_parts, whole_pages
from weightbank.posterior.machine import peak_memory
from weightbank.task import Source, Task
from weightbank.types import Flat

Role = Literal["last", "mean", "diagonal", "window", "spread", "all", "other", "snapshots"]
COLUMNS = ("accuracy", "nll", "ece", "brier", "auroc", "rmse")


@dataclass(frozen=True, eq=False)
class Compared:
    """One law and what it is worth.

    Attributes:
        name: what a table calls it.
        role: which of the laws it is, for `verdict`.
        rows: stored rows that it is made of, 0 for a vector or two.
        disk: bytes on disk that this law needs: rows, vectors and their records, padded as they lie there.
        memory: bytes at the process's peak above what it held before; None where that cannot be measured.
        seconds: drawing and predicting.
        evaluation: of the prediction averaged over draws; see its `average` and `draws`.
    """

    name: str
    role: Role
    rows: int
    disk: int
    memory: int | None
    seconds: float
    evaluation: Evaluation = field(repr=False)

    @property
    def metrics(self) -> dict[str, Estimate]:
        """The metrics of a table, those there are: accuracy, nll (nats), ece, brier, auroc; or rmse."""
        return {name: self.evaluation.average[name] for name in COLUMNS if name in self.evaluation.average}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "name": self.name,
            "role": self.role,
            "rows": self.rows,
            "draws": self.evaluation.samples,
            "examples": len(self.evaluation.targets),
            **{name: {"mean": found.mean, "stderr": found.stderr} for name, found in self.metrics.items()},
            "disk": self.disk,
            "memory": self.memory,
            "seconds": self.seconds,
        }


def compare(
    task: Task,
    moments: Moments,
    *,
    samples: int = 30,
    data: Source | None = None,
    ood: Foreign | None = None,
    last: Flat | None = None,
    window: int = 20,
    others: Mapping[str, Moments] | None = None,
    covariance: Covariance = "swag",
    burn_in: int = 0,
    thin: int = 1,
    scale: float | None = None,
) -> list[Compared]:
    """Evaluate side by side every law that `moments` gives, with equally seeded draws, on the same examples.

    In this order, those that there are: the last iterate; SWA (the mean); SWAG-diagonal; SWAG with the newest `window`
    rows; SWAG of that many iterates spread evenly over the run, which is what is published (arXiv 1902.02476: one per
    epoch); the law of all rows kept; the same from `others`, such as a log in 8 bits of the same run; `samples`
    snapshots spread over the run. Standard errors are over examples: they do not say how another training run or
    another seed of the draws would differ.

    Args:
        task: the model with its data.
        moments: the recorded run.
        samples: draws per law.
        data: labelled data instead of `task.test`.
        ood: inputs foreign to the task; adds AUROC of telling them apart by predictive entropy.
        last: the last iterate; None for the model's own weights.
        window: rows of the windowed law; left out if fewer than that many more are kept.
        others: further recordings by name.
        covariance: of the law of all rows, see `Moments.gaussian`.
        burn_in: iterates left out at the start, of all laws but the first.
        thin: every `thin`-th iterate of the rest is taken.
        scale: of the covariance; None as published, ½ for SWAG and 1 for its diagonal.
    """
    rows: list[Compared] = []
    made: dict[str, Any] = {"burn_in": burn_in, "thin": thin}

    def add(name: str, role: Role, law: WeightDistribution, count: int, disk: int) -> None:
        rows.append(_evaluated(task, name, role, law, count, disk, samples, data, ood))

    vector = whole_pages(4 * task.layout.size)
    last = task.theta() if last is None else last
    evaluate(task, last, data=data, ood=ood)  # what is loaded and cached once is no law's memory
    add("last iterate", "last", Point(last, task.layout), 0, vector)
    diagonal = moments.gaussian(covariance="diagonal", scale=scale, **made)
    add("SWA (mean)", "mean", Point(diagonal.mean(), moments.layout), 0, vector)
    add("SWAG diagonal", "diagonal", diagonal, 0, 2 * vector)
    for name, role, law, count, disk in _low_rank(moments, window, covariance, scale, made):
        add(name, role, law, count, disk)
    for name, other in (others or {}).items():
        for _, _, law, count, disk in _low_rank(other, None, covariance, scale, made):
            add(name, "other", law, count, disk)
    ensemble = _snapshots(moments, samples, made)
    if ensemble is not None:
        add(f"{samples} snapshots", "snapshots", ensemble, samples, samples * _stride(moments) + vector)
    return rows


def compare_law(
    task: Task,
    law: WeightDistribution,
    disk: int,
    *,
    samples: int = 30,
    data: Source | None = None,
    ood: Foreign | None = None,
) -> list[Compared]:
    """Evaluate one law, such as an exported Gaussian in a file of `disk` bytes, beside its mean."""
    mean = Point(law.mean(), task.layout)
    evaluate(task, mean, data=data, ood=ood)
    rank = law.rank if isinstance(law, Gaussian) else 0
    return [
        _evaluated(task, "SWA (mean)", "mean", mean, 0, whole_pages(4 * task.layout.size), 1, data, ood),
        _evaluated(task, f"SWAG {rank:,} rows", "all", law, rank, disk, samples, data, ood),
    ]


def _evaluated(
    task: Task,
    name: str,
    role: Role,
    law: WeightDistribution,
    count: int,
    disk: int,
    samples: int,
    data: Source | None,
    ood: Foreign | None,
) -> Compared:
    start = time.perf_counter()
    with peak_memory() as peak:
        found = evaluate(task, law, samples, data=data, ood=ood)
    return Compared(name, role, count, disk, peak.bytes, time.perf_counter() - start, found)


def _low_rank(
    moments: Moments, window: int | None, covariance: Covariance, scale: float | None, made: Mapping[str, Any]
) -> Iterator[tuple[str, Role, WeightDistribution, int, int]]:
    """The windowed law, if it is another one, and that of all rows; with the rows and bytes they need."""
    if moments.rows is None:
        return
    law = moments.gaussian(covariance=covariance, scale=scale, **made)
    if law.rank == 0:
        return
    vectors = 3 * whole_pages(4 * moments.layout.size)  # mean, variance, reference
    if window is not None and window > 1 and covariance == "swag" and law.rank > window:
        disk = window * _stride(moments) + vectors
        if not isinstance(moments.keep, Sketch):
            narrow = moments.gaussian(window=window, scale=scale, **made)
            yield f"SWAG newest {window}", "window", narrow, window, disk
        if moments.keep == "all" and law.rank >= 2 * window:
            spread = moments.gaussian(scale=scale, burn_in=made["burn_in"], thin=made["thin"] * -(-law.rank // window))
            yield f"SWAG {spread.rank} spread", "spread", spread, spread.rank, disk
    named = "SWAG" if covariance == "swag" else covariance
    yield f"{named} {_count(moments, law.rank)}", "all", law, law.rank, _disk(moments, law.rank, vectors)


def _count(moments: Moments, rank: int) -> str:
    if isinstance(moments.keep, Sketch):
        return f"sketch of {rank:,}"
    return f"all {rank:,}" if rank == moments.count else f"{rank:,} rows"


def _disk(moments: Moments, rank: int, vectors: int) -> int:
    """The whole log, or what a law of fewer rows than it keeps needs of it."""
    assert moments.rows is not None
    if not isinstance(moments.keep, Sketch) and rank < len(moments.rows):
        return rank * _stride(moments) + vectors
    log = moments.rows
    parts, _ = disk_parts(
        log.size, moments.layout, moments.count, log.format, moments.keep, checkpoint=False, staged=False
    )
    return sum(parts.values())


def _stride(moments: Moments) -> int:
    assert moments.rows is not None
    return moments.rows.manifest.geometry.stride


def _snapshots(moments: Moments, samples: int, made: Mapping[str, Any]) -> WeightDistribution | None:
    try:
        law = moments.snapshots(**made)
    except StoreError:
        return None
    return law if law.rows.count >= samples else None

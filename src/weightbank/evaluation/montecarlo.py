"""Predictions of a task under a law over its weights, averaged over draws that stream by (Bayesian model average)."""

import math
from numbers import Integral
from typing import Literal

import torch

from weightbank.distributions.distribution import WeightDistribution, check_over, each_draw
from weightbank.distributions.packed import PackedWeights
from weightbank.distributions.point import Point
from weightbank.errors import DataError
from weightbank.evaluation.estimate import Estimate
from weightbank.evaluation.evaluation import Evaluation
from weightbank.evaluation.forward import (
    Load,
    Refreshed,
    has_running_statistics,
    in_groups,
    one_by_one,
    vectorized,
)
from weightbank.evaluation.reader import Foreign, Labelled, Unlabelled
from weightbank.evaluation.tally import ClassTally, NumberTally
from weightbank.progress import progress
from weightbank.task import Source, Task
from weightbank.types import Flat
from weightbank.undisturbed import undisturbed

FEWEST = 5
"""Draws before an early stop: a standard error from fewer says little."""


def evaluate(
    task: Task,
    law: WeightDistribution | Flat,
    samples: int = 30,
    *,
    data: Source | None = None,
    ood: Foreign | None = None,
    generator: torch.Generator | None = None,
    batch_norm: Literal["refresh", "keep"] | None = None,
    batch_norm_batches: int | None = None,
    stderr: float | None = None,
    vectorize: int | None = None,
    bins: int = 15,
) -> Evaluation:
    """Measure `samples` draws θ_s of `law`, each alone and averaged as p(y|x) = 1/S Σ_s p(y|x, θ_s).

    The averaged prediction is that of Maddox et al. 2019 (arXiv 1902.02476, Algorithm 1, right half), with BatchNorm
    statistics collected anew for each draw. The model runs in evaluation mode (no dropout); its weights, buffers and
    training flags, the global random state and the loaders' generators are as before afterwards.

    **What counts as what.** Integer targets make a classification: outputs are logits or log-probabilities of shape
    (N, C), (N, C, ...) or (N, ..., C), or objects with `.logits`; positions labelled -100 are left out, and each other
    position is one example of N (standard errors take them as independent, which neighbouring pixels are not).
    Per draw and for the average: accuracy, nll (nats), calibrated_nll (at a temperature fitted on the other half of
    the examples), temperature, brier, ece. Floating targets make a regression: loss (`task.loss`) and rmse per draw,
    rmse and mean variance over draws of the averaged prediction.

    **Memory.** Draws are taken one at a time from `law.draws`, where a law has it, or else all at once from
    `law.sample`, shape (S, P). Predictions take about six float64 arrays of shape (N, C) in main memory, whatever S
    is, and about as much for the foreign data.

    Args:
        task: the model with its data.
        law: what the weights might be, or one flat vector (P,). One vector, or a `Point`, is a single draw.
        samples: S, at most so many draws.
        data: labelled data instead of `task.test`; a pair of tensors is read `task.batch_size` at a time.
        ood: inputs foreign to the task: a tensor, batches of inputs, or labelled data whose labels are not looked at.
            Adds auroc and fpr95 of telling them apart: by predictive entropy, for the average also by
            1 - max p (`auroc_confidence`, ...) and, of several draws, mutual information (`auroc_mutual_information`).
        generator: the source of the draws; None is a fresh one with seed 0, so a repeated call gives equal numbers.
        batch_norm: "refresh" passes over the training data for every draw if the model keeps BatchNorm statistics (in
            a copy of the model; also for a `Point` of the model's own weights); "keep" leaves the model's statistics.
            None is what the law asks for by an attribute `batch_norm` (a chip: "keep"), otherwise "refresh".
        batch_norm_batches: only so many training batches per refresh; None is all of them.
        stderr: stop after at least five draws when the standard error of the single draws' accuracy (of their loss,
            for a regression) is below this.
        vectorize: so many draws per `torch.func.vmap` call. Same numbers to rounding, at that many times the memory
            for activations and predictions. Faster only where one draw is too small to fill the machine, so measure;
            not together with refreshed BatchNorm.
        bins: equal-width confidence bins of the calibration error.

    Raises:
        DataError: for empty data; for targets (or foreign inputs) that differ between passes, as from a shuffling
            loader; for outputs that are NaN or of an unfit shape; for class indices beyond the outputs; for arguments
            out of range.
        LayoutError: for a law over other weights than the task's, and for what is no law.
    """
    _check(samples=samples, batch_norm_batches=batch_norm_batches, vectorize=vectorize, bins=bins)
    if batch_norm is None:
        batch_norm = getattr(law, "batch_norm", "refresh")
    if batch_norm not in ("refresh", "keep"):
        raise DataError(f"batch_norm={batch_norm!r}; wanted 'refresh', 'keep' or None")
    if stderr is not None and not (isinstance(stderr, (int, float)) and stderr > 0):
        raise DataError(f"stderr={stderr!r}; wanted a positive standard error to stop at, or None")
    if isinstance(law, torch.Tensor):
        law = Point(law, task.layout)
    check_over(law, task)
    samples = 1 if isinstance(law, (Point, PackedWeights)) else samples
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    load, size = _forward(task, batch_norm, batch_norm_batches, vectorize, generator.initial_seed())

    known = Labelled(
        task, task.test if data is None else data, f"{task.name}: {'test' if data is None else 'given'} data"
    )
    foreign = None if ood is None else Unlabelled(task, ood, f"{task.name}: foreign data")
    tally: ClassTally | NumberTally | None = None
    sources = (known.source, foreign.source if foreign is not None else None, task.train)
    with (
        torch.no_grad(),
        undisturbed(*sources, device=task.device),
        progress(f"{task.name}: draws", total=samples) as bar,
    ):
        done = 0
        for group in in_groups(each_draw(law, samples, generator), size, task):
            forward = load(group)
            count = len(group)
            read = known.read(forward, done, count)
            strange = None
            if foreign is not None:
                if known.axis is None:
                    raise DataError(f"{task.name}: foreign data needs class outputs, but the targets are floating")
                strange = foreign.read(forward, known.axis, done, count).rows
            if tally is None:
                tally = NumberTally(known.targets) if known.axis is None else ClassTally(known.targets, bins)
            for i in range(count):
                if isinstance(tally, ClassTally):
                    tally.add(read.rows[i], None if strange is None else strange[i])
                else:
                    tally.add(read.rows[i], read.losses[i])
                done += 1
                bar.advance()
                if _precise(tally.draws[tally.watched], stderr):
                    return tally.evaluation(task.name)
    if tally is None:
        raise DataError(f"{task.name}: the law gave no draw, {samples} were asked for")
    return tally.evaluation(task.name)


def _check(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and not (isinstance(count, Integral) and count >= 1):
            raise DataError(f"{name}={count!r}; wanted a whole number of at least 1")


def _forward(
    task: Task, batch_norm: Literal["refresh", "keep"], batches: int | None, vectorize: int | None, seed: int
) -> tuple[Load, int]:
    """How to run draws, and how many at once."""
    if batch_norm == "refresh" and has_running_statistics(task.model):
        if vectorize is not None and vectorize > 1:
            raise DataError(
                f"vectorize={vectorize}, but '{task.name}' has BatchNorm statistics to refresh for every draw; "
                'leave vectorize out, or pass batch_norm="keep"'
            )
        return Refreshed(task, batches, seed), 1
    if vectorize is not None and vectorize > 1:
        return vectorized(task), vectorize
    return one_by_one(task), 1


def _precise(values: list[float], stderr: float | None) -> bool:
    if stderr is None or len(values) < FEWEST:
        return False
    found = Estimate.of(values).stderr
    return found is not None and math.isfinite(found) and found < stderr

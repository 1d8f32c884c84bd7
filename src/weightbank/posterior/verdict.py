"""What a comparison says in a sentence or two, decided by differences on the same examples."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from weightbank.evaluation import Estimate, Evaluation
from weightbank.posterior.compare import Compared
from weightbank.sizes import readable

TWO = 2.0
"""A difference of fewer than so many standard errors is called none."""


def verdict(rows: Sequence[Compared]) -> str:
    """Whether more rows and the posterior as a whole changed the predictions, and what other recordings give.

    One sentence per line, with the numbers. A change counts where the mean of the paired per-example differences of
    the NLL (of the squared error, for a regression) is more than two of its standard errors from zero. This says
    nothing about other training runs, and little about other draws where there are few.
    """
    found: dict[str, Compared] = {}
    for row in rows:
        found.setdefault(row.role, row)
    full = found.get("all")
    if full is None:
        return "There are no rows to compare."
    sentences = []
    if "window" in found:
        sentences.append(_more_rows(found["window"], full, "the newest {} rows"))
    if "spread" in found:
        sentences.append(_more_rows(found["spread"], full, "{} rows spread over the run"))
    if "last" in found:
        sentences.append(_against(full, found["last"], "the last iterate"))
    if "mean" in found:
        sentences.append(_against(full, found["mean"], "their mean alone (SWA)"))
    sentences += [_fewer_bits(full, row) for row in rows if row.role == "other"]
    better = _better(full, rows)
    return "\n".join(sentences if better is None else [*sentences, better])


def paired(first: Evaluation, second: Evaluation) -> Estimate:
    """The mean over examples of (second - first) in NLL or squared error, ± its standard error.

    Without the same examples in both, the difference of the means, with the two standard errors added in squares.
    """
    a, b = _scores(first), _scores(second)
    if len(a) == len(b) and torch.equal(first.targets, second.targets):
        return Estimate.over(b - a)
    left, right = Estimate.over(a), Estimate.over(b)
    spread = None if left.stderr is None or right.stderr is None else math.hypot(left.stderr, right.stderr)
    return Estimate(right.mean - left.mean, spread, min(left.n, right.n))


def _more_rows(narrow: Compared, full: Compared, which: str) -> str:
    change = paired(narrow.evaluation, full.evaluation)
    opening = {
        -1: "More rows improved predictions here",
        0: "More rows did not improve predictions here",
        1: "More rows made predictions worse here",
    }[_sign(change)]
    name, before = _score(narrow)
    after, few = _score(full)[1], which.format(f"{narrow.rows:,}")
    return f"{opening}: {name} {before} with {few}, {after} with all {full.rows:,} ({_paired(change)})."


def _against(full: Compared, base: Compared, what: str) -> str:
    change = paired(base.evaluation, full.evaluation)
    verb = {-1: "predicts better than", 0: "predicts as well as", 1: "predicts worse than"}[_sign(change)]
    name, before = _score(base)
    after = _score(full)[1]
    return f"The posterior of {full.rows:,} rows {verb} {what}: {name} {after} against {before} ({_paired(change)})."


def _fewer_bits(full: Compared, other: Compared) -> str:
    change = paired(full.evaluation, other.evaluation)
    name, after = _score(other)
    share = f"{readable(other.disk)} instead of {readable(full.disk)}"
    return f"{other.name}: {name} {after} against {_score(full)[1]} ({_paired(change)}), in {share}."


def _better(full: Compared, rows: Sequence[Compared]) -> str | None:
    """The law with the best score, if no sentence had it yet and it is really better than that of all rows."""
    name, worst = _score(full)
    best = min(rows, key=lambda row: row.evaluation[name.lower()].mean)
    change = paired(full.evaluation, best.evaluation)
    if best.role not in ("diagonal", "snapshots") or _sign(change) >= 0:
        return None
    return f"Best here: {best.name}, {name} {_score(best)[1]} against {worst} with all rows ({_paired(change)})."


def _sign(change: Estimate) -> int:
    spread = change.stderr if change.stderr is not None else math.inf
    if abs(change.mean) <= TWO * spread:
        return 0
    return 1 if change.mean > 0 else -1


def _score(row: Compared) -> tuple[str, str]:
    name = "nll" if row.evaluation.kind == "classification" else "rmse"
    return name.upper(), row.evaluation[name].text


def _paired(change: Estimate) -> str:
    return "paired difference " + Estimate(change.mean, change.stderr, change.n).text


def _scores(evaluation: Evaluation) -> Float64[Tensor, " N"]:
    """The NLL of each example, or its mean squared error over outputs."""
    if evaluation.kind == "classification":
        chosen = evaluation.prediction.gather(-1, evaluation.targets.long()[:, None])[:, 0]
        return -chosen.clamp(min=5e-324).log()
    return (evaluation.prediction - evaluation.targets).square().reshape(len(evaluation.targets), -1).mean(-1)

"""Grow what is verified until the accuracy is good enough, and no further (Algorithm 1 of SWIM, arXiv 2202.08395)."""

import hashlib
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from weightbank.cim.cells import Cells
from weightbank.cim.device import Device
from weightbank.cim.montecarlo import Scorer
from weightbank.cim.plan import KIND, Plan, trial_of, trial_to_dict
from weightbank.cim.policies import Policy, by_weight
from weightbank.cim.process import WriteVerify
from weightbank.cim.rank import Order
from weightbank.cim.search import Search
from weightbank.cim.written import Written
from weightbank.distributions.distribution import seed_of
from weightbank.errors import CorruptError, DataError, ResumeError
from weightbank.evaluation.estimate import Estimate
from weightbank.progress import progress
from weightbank.store.arrays import ArrayFile, bytes_of, save_arrays
from weightbank.task import Source, Task
from weightbank.types import Flat

_RUNNING = "weightbank write-verify search 1"


def write_verify(
    task: Task,
    device: Device,
    scores: Flat | Order,
    *,
    max_drop: float = 0.005,
    step: float = 0.001,
    confidence: float = 0.95,
    policy: Policy = by_weight,
    process: WriteVerify | None = None,
    theta: Flat | None = None,
    data: Source | None = None,
    passes: int = 16,
    generator: torch.Generator | None = None,
    path: str | Path | None = None,
) -> Plan:
    """The smallest budget of write cycles that keeps the mean accuracy over chips within `max_drop` of the clean one.

    Budgets are multiples of `step`. The first is predicted from ½ Σ h var, which costs no evaluation; then the drops
    found predict the next, between the largest budget that failed and the smallest that held. Each is decided by a
    sequential test: passes over the data, every mini-batch on a chip of its own, the same chips for every budget, each
    batch paired with its clean score; looks after 2, 4, 8, ... passes share the error between them. What is undecided
    after `passes` counts as failed. The budget found is within 10 % or one step of one that failed; fresh chips confirm
    it (or the next larger one is taken), and fresh ones again give the accuracy that the plan states, which no decision
    has biased.

    Args:
        task: the model; the drop is measured on its test data.
        device: what it is programmed on.
        scores: curvatures (P,), floating, in loss per squared weight, ranked by the loss that verifying saves, equal
            ones by |w| / scale; or an order (P,), int64, best first.
        max_drop: of the mean accuracy (of the negative loss for floating targets), absolute.
        step: resolution of the budget.
        confidence: of each decision, one-sided.
        policy: how a budget is spent: `by_weight` (the paper's), `by_cell`, `graded`, `read_first`, `compensate`.
        process: the simulated loop; None for the model of two widths of error, where the policy allows it.
        theta: other weights than the task's present ones.
        data: labelled data instead of `task.test`, e.g. a validation set.
        passes: the most passes over the data for one decision.
        generator: the source of the chips; None is a fresh one with seed 0.
        path: a file that keeps the trials; a search that was stopped goes on from it, a finished one is read from it.
            The data must be the same, which is not checked.

    If even verifying everything is not enough, the plan says so (`met` is False). Raises `DataError` for numbers out of
    range, `LayoutError` for scores of another size, `ResumeError` if `path` is of another search.
    """
    if not (0 < step <= 0.5 and 0.5 < confidence < 1 and passes >= 2 and max_drop > 0):
        raise DataError(
            f"max_drop={max_drop}, step={step}, confidence={confidence}, passes={passes}; wanted a positive drop, a "
            "step in (0, 0.5], a confidence in (0.5, 1) and at least 2 passes"
        )
    task.layout.check(scores)
    cells = Cells.of(task, device, theta)
    search = Search(
        spend=policy(cells, scores, process),
        scorer=Scorer(task, data),
        theta=cells.theta,
        curvature=scores.to("cpu") if scores.is_floating_point() else None,
        max_drop=max_drop,
        step=step,
        confidence=confidence,
        passes=passes,
        seed=seed_of(generator if generator is not None else torch.Generator().manual_seed(0)),
    )
    path, digest = None if path is None else Path(path), ""
    if path is not None:
        settings = [device.describe(), repr(process), _name(policy), max_drop, step, confidence, passes, search.seed]
        digest = _digest(settings, scores, cells.theta)
        finished = _resume(path, digest, search) if path.exists() else None
        if finished is not None:
            return finished
    with progress(f"{task.name}: budgets") as bar:

        def tell() -> None:
            bar.advance()
            if path is not None:
                trials = json.dumps([trial_to_dict(trial) for trial in search.history])
                save_arrays(
                    path, {"none": torch.zeros(1)}, {"weightbank": _RUNNING, "search": digest, "trials": trials}
                )

        search.tell = tell
        number, trial = search.confirmed(search.smallest())
        drop = search.measured(number, max(4, trial.passes))
    plan = _plan(search, number, drop, trial.passed, device, task)
    if path is not None:
        plan.save(path, search=digest)
    return plan


def _plan(search: Search, number: int, drop: Estimate, met: bool, device: Device, task: Task) -> Plan:
    found = search.programming(number)
    law = found.law
    return Plan(
        rule=found.rule,
        process=law.process if isinstance(law, Written) else None,
        absorb=law.absorb if isinstance(law, Written) else None,
        device=device,
        fraction=found.fraction,
        write_cycles=found.write_cycles,
        total_write_cycles=found.total_write_cycles,
        reads=found.reads,
        accuracy=Estimate(search.clean_mean - drop.mean, drop.stderr, drop.n),
        clean=search.clean_mean,
        max_drop=search.max_drop,
        confidence=search.confidence,
        met=met,
        history=tuple(search.history),
        fingerprint=task.layout.fingerprint,
    )


def _resume(path: Path, digest: str, search: Search) -> Plan | None:
    """The finished plan of this search, or None with its trials so far put into `search`."""
    with ArrayFile(path) as file:
        kind, found = file.metadata.get("weightbank"), file.metadata.get("search")
        if kind not in (KIND, _RUNNING) or found != digest:
            raise ResumeError(
                f"{path} holds {kind or 'nothing of weightbank'} of another search (other weights, scores, device, "
                "policy or settings); name another file, or delete it to start anew"
            )
        if kind == KIND:
            return Plan.load(path)
        try:
            search.history += [trial_of(trial) for trial in json.loads(file.metadata["trials"])]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path}: its trials cannot be read: {error}") from error
    return None


def _name(policy: Policy) -> str:
    if isinstance(policy, partial):
        return f"{_name(policy.func)} {policy.args} {policy.keywords}"
    return str(getattr(policy, "__qualname__", policy))


def _digest(settings: list[object], scores: Tensor, theta: Tensor) -> str:
    """16 hexadecimal digits that change with anything that could change the plan, but for the data."""
    hashed = hashlib.sha256(json.dumps(settings).encode())
    for vector in (scores, theta):
        hashed.update(bytes_of(vector.detach().to("cpu").contiguous()).data)
    return hashed.hexdigest()[:16]

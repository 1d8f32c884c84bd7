"""The published way to make networks agree, for comparison (Neural Weight Virtualization, MobiSys 2020).

In its turn each network is trained alone on a private copy of its weights, with its own loss plus a penalty
λ Σᵢ meanᵤ Fᵤ (wᵢ - wᵤ)² towards the weights wᵤ that the others had after their last turns; then the copy replaces what
stands on its positions, whatever that does to the others. "joint" goes round many times, "sequential" once. Unlike the
released code, the loss is the task's own, the best copy is chosen on held-back data instead of the test set, and a copy
that is not finite ends the run.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from weightbank.errors import DivergedError
from weightbank.paging.asked import Judged
from weightbank.paging.bound import Bound
from weightbank.paging.commit import Score, hurt, score
from weightbank.paging.draft import Draft, importance_kept
from weightbank.paging.placement import Extent, Placement
from weightbank.paging.tied import Settings
from weightbank.paging.tune import Tuned
from weightbank.progress import progress
from weightbank.streams import Stream
from weightbank.task import Task, apply
from weightbank.types import Batches, Flat

CHECKS = 4
"""Looks at the score in each turn, to keep the best copy."""


def by_penalty(
    draft: Draft,
    tasks: Mapping[str, Task],
    judged: Judged,
    limits: Mapping[str, float],
    settings: Settings,
    *,
    rounds: int,
) -> Tuned:
    """Train by turns in `draft`; `settings.steps` per network in all, λ is `settings.hold`.

    Memory grows with the number of networks: each keeps the weights of its last turn. Raises `DivergedError`.
    """
    turns = max(1, settings.steps // rounds)
    latest = {name: draft.theta(name) for name in draft.tenants}
    unused = torch.zeros_like(draft.values)
    bounds = {name: Bound(draft.tenants[name], task.model, draft.values, unused) for name, task in tasks.items()}

    def scores() -> dict[str, Score]:
        return {name: score(task, bounds[name], judged[name][1]) for name, task in tasks.items()}

    before = scores()
    history = [(0, before)]
    with progress(f"tuning {len(tasks)} networks by turns", rounds * len(tasks)) as bar:
        for turn in range(rounds):
            for name, task in tasks.items():
                others = _others(draft, name, latest)
                latest[name] = _turn(task, bounds[name], others, judged[name], turns, settings)
                draft.tenants[name].placement.put(draft.values, latest[name])
                bar.advance()
            found = scores()
            history.append(((turn + 1) * turns, found))
            bar.note(", ".join(f"{name} {value}" for name, value in found.items()))
    draft.values.copy_(draft.rounded().values())
    after = scores()
    lost = hurt(before, after, limits)
    for name, bound in bounds.items():
        draft.tenants[name] = replace(draft.tenants[name], rest=bound.buffers())
    return Tuned(not lost, before, after, history, rounds * turns * len(tasks), 0.0, tuple(lost))


def _others(draft: Draft, name: str, latest: Mapping[str, Tensor]) -> tuple[Flat, Flat, Flat]:
    """For each weight of a network Σ F, Σ F w and the number of terms over the others at its position, shape (P,)."""
    precision, moment, terms = torch.zeros(3, draft.size)
    for other, tenant in draft.tenants.items():
        if other != name:
            importance = importance_kept(tenant) * tenant.scale
            tenant.placement.add(precision, importance)
            tenant.placement.add(moment, importance * latest[other])
            tenant.placement.add(terms, (importance > 0).float())
    gather = draft.tenants[name].placement.gather
    return gather(precision), gather(moment), gather(terms).clamp_(min=1)


def _turn(
    task: Task,
    bound: Bound,
    others: tuple[Flat, Flat, Flat],
    judged: tuple[Stream, Batches],
    steps: int,
    settings: Settings,
) -> Flat:
    """A network's weights after its turn from its positions' present values, (P,): the best of those looked at."""
    precision, moment, terms = others
    stream, held = judged
    theta = bound.present().clone()
    gradient = torch.zeros_like(theta)
    alone = replace(bound.tenant, placement=Placement(len(theta), (Extent(0, 0, len(theta)),)), rest=bound.rest)
    private = Bound(alone, task.model, theta, gradient)
    memory = nn.Parameter(theta)
    memory.grad = gradient
    adam = torch.optim.Adam([memory], lr=settings.lr, fused=True)
    best, kept = score(task, private, held), theta.clone()
    for number in range(steps):
        gradient.zero_()
        x, y = stream.next()
        private.net.train()
        loss = task.loss(apply(private.net, x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient.addcdiv_(precision * theta - moment, terms, value=2 * settings.hold)
        if not math.isfinite(float(loss.detach()) + float(gradient.sum())):
            raise DivergedError(f"'{task.name}': loss or gradient is NaN or infinite; the pool is as it was")
        adam.step()
        if (number + 1) % max(1, steps // CHECKS) == 0 or number + 1 == steps:
            found = score(task, private, held)
            if found.gain(best) > 0:
                best, kept = found, theta.clone()
                bound.keep(private.rest)
    return kept

"""Joint training of all networks in one memory: the pool is the only trainable tensor, so nothing drifts apart.

Each step takes one minibatch per network; the gradients of all add up at the positions they share (true tying), and one
Adam step moves the pool. The published method trains private copies towards each other instead (`penalty.py`).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from weightbank.errors import DivergedError
from weightbank.formats import Native
from weightbank.paging.bound import Bound
from weightbank.paging.commit import Score
from weightbank.paging.draft import Draft, importance_kept
from weightbank.paging.statistics import Shared
from weightbank.streams import Stream
from weightbank.task import Task, apply
from weightbank.training import half_cosine
from weightbank.types import Inputs


@dataclass(frozen=True)
class Settings:
    """Of a run over all networks.

    Attributes:
        steps: optimizer steps, each with one minibatch of every network.
        lr: Adam's first rate; it falls to zero along half a cosine.
        hold: how strongly networks without data (or at their target) are held, in units of the median mean curvature:
            the same for all, however sure of itself a network is.
        targets: the score at which a network is only held, by name.
        shares: the weight of a network's loss, by name; 1 if not named.
        anchors: the weights (P,) that networks without data are held at; those in the pool if not named.
    """

    steps: int
    lr: float
    hold: float
    targets: Mapping[str, float]
    shares: Mapping[str, float]
    anchors: Mapping[str, Tensor] = field(default_factory=dict)


class Tied:
    """Training of a draft's values in place.

    Memory: the values, their gradient, Adam's two states, and for low precision their rounded copy, (N,) each; the
    activations of one network; two more vectors while somebody is held. None of it grows with the number of networks.
    """

    def __init__(
        self, draft: Draft, tasks: Mapping[str, Task], streams: Mapping[str, Stream], settings: Settings
    ) -> None:
        self.draft, self.tasks, self.streams, self.settings = draft, tasks, streams, settings
        self.gradient = torch.zeros_like(draft.values)
        self._exact = draft.format == Native("float32")
        self.seen = draft.values if self._exact else draft.format.quantize(draft.values)
        self.bounds = {name: Bound(draft.tenants[name], tasks[name].model, self.seen, self.gradient) for name in tasks}
        memory = nn.Parameter(draft.values)
        memory.grad = self.gradient
        self.adam = torch.optim.Adam([memory], lr=settings.lr, fused=True)
        self.resting: frozenset[str] = frozenset()
        self._absent = self._wanted([name for name in draft.tenants if name not in tasks], settings.anchors)
        self._held = self._absent

    def step(self, number: int) -> float:
        """Optimizer step `number` (from 0); the mean loss. Raises `DivergedError` and leaves a draft to be dropped."""
        self.gradient.zero_()
        losses = []
        for name, bound in self.bounds.items():
            if name not in self.resting:
                losses.append(self._backward(name, bound, number))
        if self._held is not None:
            self.gradient.addcmul_(self._held.precision, self.draft.values).sub_(self._held.moment)
        for group in self.adam.param_groups:
            group["lr"] = self.settings.lr * half_cosine(number, self.settings.steps)
        self._move()
        if not math.isfinite(float(self.draft.values.sum())):
            raise DivergedError(f"the pool became NaN or infinite at step {number}; lower the learning rate")
        self._round()
        return math.fsum(losses) / max(len(losses), 1)

    def rest_those_at_target(self, scores: Mapping[str, Score]) -> None:
        """Let networks rest that reached their target, held where they are now; the others train (again)."""
        targets = self.settings.targets
        self.resting = frozenset(name for name in scores if name in targets and scores[name].reaches(targets[name]))
        self._held = self._absent
        if self.resting:
            held = self._wanted(self.resting, {})
            if held is not None and self._absent is not None:
                held.precision.add_(self._absent.precision)
                held.moment.add_(self._absent.moment)
            self._held = held

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "values": self.draft.values,
            "adam": self.adam.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "buffers": {name: bound.buffers() for name, bound in self.bounds.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.draft.values.copy_(state["values"])
        self.adam.load_state_dict(state["adam"])
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
            for key, value in state["buffers"][name].items():
                self.bounds[name].rest[key].copy_(value)
        self._round()

    def _backward(self, name: str, bound: Bound, number: int) -> float:
        x, y = self.streams[name].next()
        bound.pull()
        loss = self._loss(name, bound.net, x, y) * self.settings.shares.get(name, 1.0)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"'{name}': loss is {value} at step {number}; the pool is as it was: lower the learning rate, or look "
                "for bad values in this network's data"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        bound.push()
        bound.release()
        if not math.isfinite(float(self.gradient.sum())):
            raise DivergedError(f"'{name}': a gradient is NaN or infinite at step {number}; the pool is as it was")
        return value

    def _loss(self, name: str, net: nn.Module, x: Inputs, y: Tensor) -> Tensor:
        return self.tasks[name].loss(apply(net.train(), x), y)

    def _move(self) -> None:
        self.adam.step()

    def _wanted(self, names: Iterable[str], anchors: Mapping[str, Tensor]) -> Shared | None:
        """The penalty that holds networks at their anchors, or where they are now: its gradient is F v - M."""
        tenants = [self.draft.tenants[name] for name in names]
        if not tenants:
            return None
        held = Shared.empty(self.draft.size)
        scales = [tenant.scale for tenant in self.draft.tenants.values() if tenant.scale > 0]
        for tenant in tenants:
            pull = importance_kept(tenant) * (2 * self.settings.hold * median(scales or [1.0]))
            tenant.placement.add(held.precision, pull)
            theta = anchors.get(tenant.name)
            theta = tenant.placement.gather(self.draft.values) if theta is None else theta
            tenant.placement.add(held.moment, pull * theta)
        return held

    def _round(self) -> None:
        if not self._exact:
            self.draft.format.quantize(self.draft.values, out=self.seen)

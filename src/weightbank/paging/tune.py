"""Tune a pool so that its networks agree on the weights they share, and commit only what harms none of them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from weightbank.errors import DataError, LayoutError, ResumeError
from weightbank.paging.asked import Judged, Tasks, check_tenants, judged_of, limits_of, named_tasks
from weightbank.paging.commit import TOLERANCE, Score, hurt, score, worth
from weightbank.paging.draft import Draft
from weightbank.paging.exclusive import set_apart
from weightbank.paging.owner import Owner
from weightbank.paging.tied import Settings, Tied
from weightbank.progress import progress
from weightbank.store.state import load_state, save_state
from weightbank.task import Source, Task
from weightbank.undisturbed import undisturbed

if TYPE_CHECKING:
    from weightbank.paging.pool import Pool

HOLD, LAMBDA = 100.0, 10.0
"""Of tying: three measured networks kept what they had at 100 (with anchors), and lost up to half of it at 10. λ of the
published method."""
_KIND = "weightbank tuning 1"


@dataclass(frozen=True)
class Tuned:
    """What tuning did.

    Attributes:
        committed: whether the pool serves the result now; if not it is as it was.
        before: the scores on held-back data of the pool as it was, by tenant.
        after: those of the candidate that was committed, or of the last one.
        history: (step, scores) of every check.
        steps: optimizer steps taken, in all attempts.
        seconds: wall time.
        hurt: who lost more than its tolerance at the last check of an attempt that failed.
        apart: weights that were given positions of their own, by tenant.
    """

    committed: bool
    before: Mapping[str, Score]
    after: Mapping[str, Score]
    history: Sequence[tuple[int, Mapping[str, Score]]] = field(repr=False)
    steps: int
    seconds: float
    hurt: tuple[str, ...] = ()
    apart: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "committed": self.committed,
            "steps": self.steps,
            "seconds": self.seconds,
            "before": {name: score.to_dict() for name, score in self.before.items()},
            "after": {name: score.to_dict() for name, score in self.after.items()},
            "hurt": list(self.hurt),
            "apart": dict(self.apart),
            "history": [[step, {name: score.value for name, score in found.items()}] for step, found in self.history],
        }

    def __str__(self) -> str:
        lines = [f"{self.steps:,} steps in {self.seconds:.1f} s: " + ("committed" if self.committed else "rolled back")]
        lines += [f"  {name}: {self.before[name]} -> {self.after[name]}" for name in self.after]
        if self.hurt and not self.committed:
            lines.append(f"  lost more than tolerated: {', '.join(self.hurt)}")
        lines += [f"  {count:,} weights of {name} are no longer shared" for name, count in self.apart.items()]
        return "\n".join(lines)


def tune(
    pool: "Pool",
    tasks: Tasks,
    *,
    steps: int = 1_000,
    lr: float = 1e-3,
    method: Literal["tied", "joint", "sequential"] = "tied",
    tolerance: float | Mapping[str, float] = TOLERANCE,
    targets: Mapping[str, float] | None = None,
    shares: Mapping[str, float] | None = None,
    validation: Mapping[str, Source] | None = None,
    hold: float | None = None,
    anchors: Mapping[str, Tensor] | None = None,
    every: int | None = None,
    retries: int = 1,
    rounds: int = 20,
    checkpoint: str | Path | None = None,
    log: Callable[[int, Mapping[str, float]], Any] | None = None,
    seed: int = 0,
) -> Tuned:
    """Train the networks of a pool together, and serve the result if it harms none of them.

    Whoever uses the pool meanwhile sees it as it was; the result appears at once or not at all.

    **Method.** "tied": the pool is the only trainable tensor; each step takes one minibatch of every task, their
    gradients add up in the pool, and Adam moves it. Rounded pools (8 or 4 bits) are trained straight through their
    rounding. "joint" and "sequential" are the published penalty method (see `penalty.py`), for comparison.

    **Commit rule.** Up to a tenth of each task's training data, at most 2,000 examples, is held back to judge by; test
    data are never read. Every `every` steps all tasks are measured there. Of the candidates that are finite and where
    none lost more than its tolerance (and one standard error) against the pool as it was, the one with the largest mean
    gain is committed. If there is none, the pool stays, those who lost get free positions for their most important
    tensors or pages, where there are any, and all is tried again, `retries` times. Tenants without a task are held, not
    measured.

    Args:
        pool: what to tune.
        tasks: of one, some or all tenants, found by `task.name`, or by the key of a mapping. Their models give the
            structure; their own weights are neither read nor changed.
        steps: optimizer steps, each with a minibatch per task; for the penalty method, steps per task.
        lr: Adam's first rate, falling to zero along half a cosine ("tied"), or its constant rate.
        method: see above.
        tolerance: the accuracy that a network may lose, 0.01 is a point; for regressions a fraction of the rmse.
        targets: by tenant, the score (accuracy, or rmse) at which it stops training and is only held.
        shares: by tenant, the weight of its loss; 1 if not named.
        validation: by tenant, data to judge by instead of held-back training data. Never pass test data.
        hold: tenants without a task are held at their weights w₀ by hold · Σ F (w - w₀)², F of the median mean
            curvature of all tenants: the same for each, however sure of itself; 100 by default. More holds them
            better and costs the others. Of the published penalty: λ, 10 by default.
        anchors: by tenant without a task, its w₀, shape (P,); by default those that the pool holds, which sharing has
            moved already if the tenant was added since the last tuning.
        every: steps between two checks; by default a tenth of them.
        retries: how often to try again with positions apart.
        rounds: of "joint": how often the turn goes round.
        checkpoint: a file that is written at each check; if it is there at the start, the run goes on from it and ends
            with the same bits; removed at the end. For "tied" only.
        log: called after each check (of the penalty methods: at the end) as `f(step, scores)`, such as
            `weightbank.logs.TrainingLog(...).scores`.
        seed: of the order of the data, of dropout, and of what is held back.

    Raises:
        LayoutError: for a task that is not in the pool, or whose model has other weights.
        DivergedError: when a loss or gradient becomes NaN or infinite. The pool is as it was.
        DataError: for arguments out of range, and data from which nothing can be held back.
        ResumeError: for a checkpoint of another run.
    """
    start = time.monotonic()
    every = max(1, steps // 10) if every is None else every
    hold = (HOLD if method == "tied" else LAMBDA) if hold is None else hold
    whole = {"steps": steps, "every": every, "retries": retries, "rounds": rounds}
    if any(not isinstance(count, Integral) or count < (name != "retries") for name, count in whole.items()):
        said = ", ".join(f"{name}={count!r}" for name, count in whole.items())
        raise DataError(f"{said}; wanted whole numbers, at least one step and round, and nothing negative")
    if not 0 < lr < math.inf or not 0 <= hold < math.inf:
        raise DataError(f"lr={lr}, hold={hold}; wanted a positive rate, and nothing negative, NaN or infinite")
    named = named_tasks(tasks)
    settings = Settings(steps, lr, hold, dict(targets or {}), dict(shares or {}), dict(anchors or {}))
    sources = [task.train for task in named.values()]
    with (
        torch.enable_grad(),
        pool.edit() as draft,
        undisturbed(*sources, device=torch.device("cpu"), seed=seed),
    ):
        check_tenants([*named, *settings.targets, *settings.shares, *(validation or {})], named, draft.tenants)
        for name, anchor in settings.anchors.items():
            if name not in draft.tenants or name in named:
                raise LayoutError(f"an anchor came for '{name}', which is not a tenant without a task")
            draft.tenants[name].layout.check(anchor)
        limits = limits_of(tolerance, named)
        judged = judged_of(named, seed, validation)
        if method == "tied":
            done = _Job(pool, draft, named, judged, limits, settings, every, retries, seed, checkpoint, log).run()
        elif method in ("joint", "sequential"):
            from weightbank.paging.penalty import by_penalty

            done = by_penalty(draft, named, judged, limits, settings, rounds=rounds if method == "joint" else 1)
            if log is not None:
                for step, scores in done.history:
                    log(step, {name: found.value for name, found in scores.items()})
        else:
            raise DataError(f"method={method!r}; wanted tied, joint or sequential")
        draft.publish = done.committed
    return replace(done, seconds=time.monotonic() - start)


@dataclass
class _Best:
    """The best candidate so far."""

    worth: float
    owner: Owner
    buffers: dict[str, dict[str, Tensor]]
    scores: dict[str, Score]


class _Job:
    """Attempts at tuning by tying, with their checks and checkpoints."""

    def __init__(
        self,
        pool: "Pool",
        draft: Draft,
        tasks: dict[str, Task],
        judged: Judged,
        limits: Mapping[str, float],
        settings: Settings,
        every: int,
        retries: int,
        seed: int,
        checkpoint: str | Path | None,
        log: Callable[[int, Mapping[str, float]], Any] | None,
    ) -> None:
        self.pool, self.draft, self.tasks, self.judged, self.limits = pool, draft, tasks, judged, limits
        self.settings, self.every, self.retries, self.seed, self.log = settings, every, retries, seed, log
        self.path = None if checkpoint is None else Path(checkpoint)
        self.before: dict[str, Score] = {}
        self.history: list[tuple[int, dict[str, Score]]] = []
        self.failed: list[list[str]] = []
        self.apart: dict[str, int] = {}

    def run(self) -> Tuned:
        """Attempts until one leaves a candidate that may be committed; the draft holds it then."""
        state = self._load()
        self._set_apart()
        while True:
            best = self._attempt(state)
            state = None
            steps, after = self.history[-1]
            if best is not None:
                self._take(best)
                self._forget()
                return Tuned(True, self.before, best.scores, self.history, steps, 0.0, (), self.apart)
            names = hurt(self.before, after, self.limits)
            self.failed.append(names)
            self.draft.restore(self.pool.generation)
            if len(self.failed) > self.retries or len(names) == len(self.draft.tenants) or not self._set_apart():
                break
        self._forget()
        return Tuned(False, self.before, after, self.history, steps, 0.0, tuple(names), {})

    def _attempt(self, state: Any) -> _Best | None:
        streams = {name: stream for name, (stream, _) in self.judged.items()}
        run = Tied(self.draft, self.tasks, streams, self.settings)
        best: _Best | None = None
        first = 0
        if state is not None:
            best, first = self._resume(run, state)
        elif not self.before:
            self.before = self._scores(run)
            self._note(0, self.before)
            run.rest_those_at_target(self.before)
        steps = self.settings.steps
        earlier = self.history[-1][0] - first
        with progress(f"tuning {len(self.tasks)} networks", steps) as bar:
            bar.advance(first)
            for number in range(first, steps):
                if len(run.resting) == len(self.tasks) and best is not None:
                    break
                loss = run.step(number)
                bar.advance()
                if (number + 1) % self.every and number + 1 < steps:
                    continue
                scores = self._scores(run)
                self._note(earlier + number + 1, scores)
                bar.note(f"loss {loss:.3f}, " + ", ".join(f"{name} {found}" for name, found in scores.items()))
                best = self._better(best, scores, run)
                run.rest_those_at_target(scores)
                self._save(run, number + 1, best)
        return best

    def _note(self, step: int, scores: dict[str, Score]) -> None:
        self.history.append((step, scores))
        if self.log is not None:
            self.log(step, {name: found.value for name, found in scores.items()})

    def _better(self, best: _Best | None, scores: dict[str, Score], run: Tied) -> _Best | None:
        """The candidate in `run`, if it may be committed and gains at least as much as `best`."""
        if hurt(self.before, scores, self.limits):
            return best
        gain = worth(self.before, scores)
        if not math.isfinite(gain) or (best is not None and gain < best.worth):
            return best
        owner = Owner.of(self.draft.values.clone(), self.draft.format)
        return _Best(gain, owner, {name: bound.buffers() for name, bound in run.bounds.items()}, scores)

    def _take(self, best: _Best) -> None:
        self.draft.values = best.owner.values()
        for name, rest in best.buffers.items():
            self.draft.tenants[name] = replace(self.draft.tenants[name], rest=rest)

    def _scores(self, run: Tied) -> dict[str, Score]:
        return {name: score(task, run.bounds[name], self.judged[name][1]) for name, task in self.tasks.items()}

    def _set_apart(self) -> int:
        """Positions of their own for all who were hurt, as far as there are; how many weights the last failure moved.

        Those hurt earlier come first, so that a further attempt begins where the one before began.
        """
        self.apart, moved = {}, 0
        for names in self.failed:
            found = {name: set_apart(self.draft, name) for name in names}
            moved = sum(found.values())
            for name, count in found.items():
                if count:
                    self.apart[name] = self.apart.get(name, 0) + count
        return moved

    def _save(self, run: Tied, done: int, best: _Best | None) -> None:
        if self.path is None:
            return
        state = {
            "run": self._identity(),
            "done": done,
            "failed": self.failed,
            "tied": run.state_dict(),
            "random": torch.get_rng_state(),
            "history": [[step, _plain(found)] for step, found in self.history],
            "best": None
            if best is None
            else {"worth": best.worth, "raw": best.owner.raw, "buffers": best.buffers, "scores": _plain(best.scores)},
        }
        save_state(self.path, state, _KIND)

    def _load(self) -> Any:
        if self.path is None or not self.path.exists():
            return None
        state = load_state(self.path, _KIND)
        if state["run"] != self._identity():
            raise ResumeError(f"{self.path} is the checkpoint of another run of tuning; name another file or delete it")
        self.failed = [list(names) for names in state["failed"]]
        return state

    def _resume(self, run: Tied, state: Any) -> tuple[_Best | None, int]:
        run.load_state_dict(state["tied"])
        torch.set_rng_state(state["random"])
        self.history = [(step, _scored(found)) for step, found in state["history"]]
        self.before = self.history[0][1]
        run.rest_those_at_target(self.history[-1][1])
        best = state["best"]
        if best is not None:
            owner = Owner(self.draft.format, self.draft.size, best["raw"])
            best = _Best(best["worth"], owner, best["buffers"], _scored(best["scores"]))
        return best, int(state["done"])

    def _identity(self) -> list[Any]:
        """What must be the same for a checkpoint to be of use."""
        s = self.settings
        pool = [repr(self.draft.format), self.draft.size, self.pool.generation.checksum]
        tenants = [[name, task.layout.fingerprint] for name, task in self.tasks.items()]
        anchors = {name: float(anchor.double().sum()) for name, anchor in s.anchors.items()}
        options = [s.steps, s.lr, s.hold, dict(s.targets), dict(s.shares), anchors]
        return [*pool, tenants, *options, dict(self.limits), self.every, self.retries, self.seed]

    def _forget(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _plain(scores: Mapping[str, Score]) -> dict[str, list[Any]]:
    return {name: [found.metric, found.value, found.examples, found.right] for name, found in scores.items()}


def _scored(plain: Mapping[str, Sequence[Any]]) -> dict[str, Score]:
    return {
        name: Score(str(metric), float(value), int(count), right)
        for name, (metric, value, count, right) in plain.items()
    }

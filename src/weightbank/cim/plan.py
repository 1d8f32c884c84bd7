"""A programming plan: which cells to verify and how, what it costs, what it is worth; kept as `.safetensors`."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from weightbank.cim.cells import Cells
from weightbank.cim.device import Device
from weightbank.cim.process import WriteVerify
from weightbank.cim.program import Chip
from weightbank.cim.rule import Rule
from weightbank.cim.written import Written
from weightbank.errors import CorruptError, LayoutError, WeightbankError
from weightbank.evaluation.estimate import Estimate
from weightbank.store.arrays import ArrayFile, save_arrays
from weightbank.task import Task
from weightbank.types import Flat

KIND = "weightbank write-verify plan 1"


@dataclass(frozen=True)
class Trial:
    """One budget that was tried: what it took, the drop of the mean accuracy, and whether that was within the target.

    passes: over the test data, each mini-batch on a chip of its own.
    fresh: on chips that no other trial of this kind of budget had seen, to confirm the choice.
    """

    budget: float
    fraction: float
    write_cycles: float
    drop: Estimate
    passes: int
    passed: bool
    fresh: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """What to verify so that the mean accuracy over chips drops by at most `max_drop` of `clean`.

    Attributes:
        rule: the grade of each weight (P,) or cell (M, P).
        process: the simulated write-verify loop; None where cells have one of two widths of error.
        device: what it was made for.
        fraction: of the cells on the device, those read after the first write.
        write_cycles: extra pulses relative to verifying everything.
        total_write_cycles: the same, first writes counted.
        reads: verifying reads per cell.
        accuracy: mean over chips that took no part in the search, with its standard error.
        clean: accuracy of the exact weights on the same examples.
        max_drop: the target.
        confidence: of the decisions.
        met: whether the target was met; if not, everything is verified and even that was not enough.
        history: all trials in order.
        fingerprint: of the layout.
        absorb: the weights (P,) written cell by cell, later cells taking up what was read; None for none.
    """

    rule: Rule
    process: WriteVerify | None
    device: Device
    fraction: float
    write_cycles: float
    total_write_cycles: float
    reads: float
    accuracy: Estimate
    clean: float
    max_drop: float
    confidence: float
    met: bool
    history: tuple[Trial, ...]
    fingerprint: str
    absorb: Bool[Tensor, " P"] | None = None

    @property
    def verified(self) -> Bool[Tensor, "*M P"]:
        """Which weights (P,) or cells (M, P) are read, and verified where they need it."""
        return self.rule.read

    def apply(self, task: Task, device: Device | None = None, *, theta: Flat | None = None) -> Chip | Written:
        """The law of a later chip programmed by this plan: on the plan's device or a like one.

        Raises `LayoutError` for a task over other weights, or a device with another number of cells.
        """
        if task.layout.fingerprint != self.fingerprint:
            raise LayoutError(
                f"this plan is for a layout {self.fingerprint}, task '{task.name}' has {task.layout.fingerprint} "
                f"({task.layout.size:,} weights); make a plan for it"
            )
        cells = Cells.of(task, self.device if device is None else device, theta)
        if self.process is None:
            return Chip(cells, self.verified)
        return Written(cells, self.process, self.rule, self.absorb)

    def save(self, path: str | Path, *, search: str = "") -> None:
        """Write it to one `.safetensors` file, atomically; `DataError` for a device that holds functions.

        search: a name for the search that it came from, by which `write_verify` knows its own.
        """
        facts = {
            "device": self.device.describe(),
            "process": None if self.process is None else asdict(self.process),
            "limits": [None if math.isinf(limit) else limit for limit in self.rule.limits],
            "tolerances": list(self.rule.tolerances),
            "history": [trial_to_dict(trial) for trial in self.history],
            "accuracy": asdict(self.accuracy),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        arrays = {"grades": self.rule.grades} | ({} if self.absorb is None else {"absorb": self.absorb})
        save_arrays(path, arrays, {"weightbank": KIND, "search": search, "plan": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """A plan saved by `save`; `CorruptError` if the file is something else."""
        with ArrayFile(path) as file:
            if file.metadata.get("weightbank") != KIND or "grades" not in file.shapes:
                found = file.metadata.get("weightbank", "nothing of weightbank")
                raise CorruptError(f"{path}: holds {found!r} and arrays {list(file.shapes)}, wanted {KIND!r}")
            try:
                facts = json.loads(file.metadata["plan"])
                limits = tuple(math.inf if limit is None else float(limit) for limit in facts["limits"])
                rule = Rule(file.read("grades"), limits, tuple(float(t) for t in facts["tolerances"]))
                process = None if facts["process"] is None else WriteVerify(**facts["process"])
                return cls(
                    rule=rule,
                    absorb=file.read("absorb") if "absorb" in file.shapes else None,
                    process=process,
                    device=Device.parse(facts["device"]),
                    accuracy=estimate_of(facts["accuracy"]),
                    history=tuple(trial_of(trial) for trial in facts["history"]),
                    **{name: kind(facts[name]) for name, kind in _PLAIN.items()},
                )
            except (KeyError, TypeError, ValueError, RecursionError, WeightbankError) as error:
                raise CorruptError(f"{path}: its plan cannot be read: {error}") from error

    def __str__(self) -> str:
        verdict = "within" if self.met else "NOT within"
        return (
            f"verify {self.fraction:.2%} of the cells, {self.write_cycles:.2%} of the write cycles of verifying all: "
            f"accuracy {self.accuracy.text} over {self.accuracy.n:,} chips, {verdict} {self.max_drop:g} of "
            f"{self.clean:.4f}"
        )


_PLAIN: dict[str, type] = {
    "fraction": float,
    "write_cycles": float,
    "total_write_cycles": float,
    "reads": float,
    "clean": float,
    "max_drop": float,
    "confidence": float,
    "met": bool,
    "fingerprint": str,
}


def trial_to_dict(trial: Trial) -> dict[str, Any]:
    """Plain values for JSON."""
    return asdict(trial)


def trial_of(facts: dict[str, Any]) -> Trial:
    """The inverse of `trial_to_dict`."""
    return Trial(**{**facts, "drop": estimate_of(facts["drop"])})


def estimate_of(facts: dict[str, Any]) -> Estimate:
    """An estimate from plain values."""
    stderr = facts["stderr"]
    return Estimate(float(facts["mean"]), None if stderr is None else float(stderr), int(facts["n"]))

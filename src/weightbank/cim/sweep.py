"""Accuracy against write cycles for several ways of programming, all on the same chips."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from weightbank.cim.cells import Cells
from weightbank.cim.insitu import Retraining, Spent
from weightbank.cim.montecarlo import LEAST, Passes, Scorer, student
from weightbank.cim.plan import estimate_of
from weightbank.cim.policies import Programming, Spend
from weightbank.cim.written import Written
from weightbank.errors import CorruptError, DataError, LayoutError, ResumeError
from weightbank.evaluation.estimate import Estimate
from weightbank.progress import progress
from weightbank.store.arrays import bytes_of
from weightbank.store.media import Directory
from weightbank.task import Source, Task

BUDGETS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Normalised write cycles from nothing to everything, three to a decade."""

CONFIDENCE = 0.95

EARLY = 4
"""Passes before a row may be done early: after fewer its standard error is hardly known, and its band is wide."""

KIND = "weightbank sweep 1"
LIMIT = 64 << 20
"""The largest file that is read, in bytes."""


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    budget: asked for, in normalised write cycles.
    fraction: of the cells on the device, those read after the first write.
    write_cycles: extra pulses relative to verifying everything, as the method spends the budget.
    total_write_cycles: the same, first writes counted.
    reads: verifying reads per cell.
    accuracy: mean over chips with its standard error; `n` counts chips.
    low, high: where the mean lies with 95 % confidence (Student's t).
    key: 16 hexadecimal digits that change with anything that could change the row, but for the data.
    """

    method: str
    budget: float
    fraction: float
    write_cycles: float
    total_write_cycles: float
    reads: float
    accuracy: Estimate
    low: float
    high: float
    key: str


@dataclass(frozen=True)
class Sweep:
    """The rows of all methods at all budgets, and the accuracy of the exact weights on the same examples.

    fingerprint: of the layout. weights: 16 hexadecimal digits of the weights that were programmed.
    """

    task: str
    clean: float
    fingerprint: str
    weights: str
    rows: tuple[Row, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Their names, in the order given."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    def of(self, method: str) -> tuple[Row, ...]:
        """The rows of one method, by write cycles; `DataError` if there are none."""
        rows = [row for row in self.rows if row.method == method]
        if not rows:
            raise DataError(f"no method '{method}' here; there are: {', '.join(self.methods)}")
        return tuple(sorted(rows, key=lambda row: row.write_cycles))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [{**asdict(row), "accuracy": row.accuracy.to_dict()} for row in self.rows]
        return {**asdict(self), "rows": rows}

    def csv(self) -> str:
        """One line per row, with a head."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*_PLAIN, "accuracy", "stderr", "low", "high", "chips"])
        for row in self.rows:
            plain = [getattr(row, name) for name in _PLAIN]
            table.writerow([*plain, row.accuracy.mean, row.accuracy.stderr, row.low, row.high, row.accuracy.n])
        return text.getvalue()

    def save(self, path: str | Path) -> None:
        """Write it as JSON, atomically."""
        path = Path(path)
        text = json.dumps({"weightbank": KIND, **self.to_dict()}, indent=1, allow_nan=False)
        Directory(path.parent).replace(path.name, text.encode())

    @classmethod
    def load(cls, path: str | Path) -> "Sweep":
        """A sweep saved by `save`, whole or as far as it came; `CorruptError` if the file is something else."""
        path = Path(path)
        try:
            found = json.loads(Directory(path.parent).read(path.name, LIMIT))
            if not isinstance(found, dict) or found.get("weightbank") != KIND:
                raise CorruptError(f"{path}: not a sweep saved by weightbank")
            texts = {name: str(found[name]) for name in ("task", "fingerprint", "weights")}
            return cls(clean=_number(found["clean"]), rows=tuple(_row(row) for row in found["rows"]), **texts)
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path}: this sweep cannot be read: {error!r}") from error


_PLAIN = ("method", "budget", "fraction", "write_cycles", "total_write_cycles", "reads")


def sweep(
    task: Task,
    methods: Mapping[str, Spend | Retraining],
    budgets: Sequence[float] = BUDGETS,
    *,
    chips: int = 300,
    stderr: float | None = None,
    data: Source | None = None,
    seed: int = 0,
    path: str | Path | None = None,
) -> Sweep:
    """Every method at every budget, a fresh chip for each mini-batch of the test data, the same chips for all.

    So the gaps between methods are known better than the bands of single ones suggest; `compare` says how well.

    Args:
        task: the model; the accuracy (the negative loss for floating targets) is that on its test data.
        methods: names to ways of spending a budget, such as `by_cell(cells, curvature)`, all for the same weights. A
            `Retraining` has chips of its own, as many as it says, each seen at all budgets on all of the data.
        budgets: normalised write cycles, 0 to 1.
        chips: so many for each row, rounded up to whole passes over the data, at least two passes.
        stderr: a row is done when its standard error is below this, after four passes at the earliest.
        data: labelled data instead of `task.test`.
        seed: of the chips.
        path: a JSON file that is written after each row. If it is there, rows in it that would come out the same are
            taken from it, so a sweep that was stopped goes on, and one with more methods only adds them. The data are
            compared by the accuracy of the exact weights alone.

    Raises `DataError` for budgets or counts out of range, or no methods; `LayoutError` for methods of other weights;
    `ResumeError` if `path` holds a sweep of other weights or data.
    """
    if not methods or not budgets or chips < 1 or not all(0 <= budget <= 1 for budget in budgets):
        raise DataError(
            f"{len(methods)} methods, budgets {list(budgets)}, chips={chips}; wanted at least one method, budgets "
            "between 0 and 1, and at least one chip"
        )
    if stderr is not None and not stderr > 0:
        raise DataError(f"stderr={stderr}; wanted a positive one, or None")
    theta = _cells(next(iter(methods.values()))).theta
    scorer = Scorer(task, data)
    clean = float((scorer.run(lambda: theta) * scorer.weights).sum())
    passes = max(LEAST, math.ceil(chips / len(scorer.counts)))
    found = Sweep(task.name, clean, task.layout.fingerprint, _hash(theta), ())
    for name, method in methods.items():
        if _hash(_cells(method).theta) != found.weights:
            raise LayoutError(f"'{name}' programs other weights than the first; give all the same")
    known = {} if path is None else _known(Path(path), found)
    left = dict(known)
    with progress(f"{task.name}: write cycles", len(budgets) * len(methods)) as bar:
        for budget in budgets:
            for name, method in methods.items():
                bar.note(f"{name} {budget:.3g}")
                if isinstance(method, Retraining):
                    key = _retraining_key(method, budget, seed)
                    if key not in known:  # one chip is trained past all budgets
                        known |= _retrained(method, scorer, budgets, seed)
                    known[key] = replace(known[key], method=name, budget=float(budget))
                else:
                    way = method(budget)
                    key = _key(way, [seed, passes, stderr])
                    row = known[key] if key in known else _measured(way, scorer, passes, stderr, seed, key)
                    plain = {part: getattr(way, part) for part in _PLAIN[2:]}
                    known[key] = replace(row, method=name, budget=float(budget), **plain)
                left.pop(key, None)
                found = replace(found, rows=(*found.rows, known[key]))
                if path is not None:
                    replace(found, rows=(*found.rows, *left.values())).save(path)
                bar.advance()
    if path is not None:
        found.save(path)
    return found


def _measured(way: Programming, scorer: Scorer, passes: int, stderr: float | None, seed: int, key: str) -> Row:
    chips = Passes(scorer, way.law, Generator().manual_seed(seed))
    while len(chips.rows) < passes:
        chips.add()
        if len(chips.rows) >= EARLY and stderr is not None and (chips.strata().estimate.stderr or 0.0) < stderr:
            break
    strata = chips.strata()
    return _banded(strata.estimate, strata.freedom, key)


def _banded(accuracy: Estimate, freedom: float, key: str) -> Row:
    """A row that has nothing yet but its accuracy and band."""
    half = student((1 + CONFIDENCE) / 2, freedom) * (accuracy.stderr or 0.0)
    low, high = accuracy.mean - half, accuracy.mean + half
    return Row("", 0.0, 0.0, 0.0, 0.0, 0.0, accuracy, low, high, key)


def _retrained(method: Retraining, scorer: Scorer, budgets: Sequence[float], seed: int) -> dict[str, Row]:
    """The rows of in-situ retraining by key."""
    found = method.spent(budgets, lambda theta: float((scorer.run(lambda: theta) * scorer.weights).sum()), seed)

    def row(budget: float, spent: Spent) -> Row:
        accuracy = Estimate(spent.accuracy.mean, spent.accuracy.stderr, spent.accuracy.n)  # a file keeps no more
        banded = _banded(accuracy, method.chips - 1, _retraining_key(method, budget, seed))
        return replace(banded, write_cycles=spent.write_cycles, total_write_cycles=spent.total_write_cycles)

    rows = [row(budget, spent) for budget, spent in found.items()]
    return {row.key: row for row in rows}


def _cells(method: Spend | Retraining) -> Cells:
    return method.cells if isinstance(method, Retraining) else method(0.0).law.cells


def _known(path: Path, wanted: Sweep) -> dict[str, Row]:
    """The rows of the file by key; empty if there is no file yet."""
    if not path.exists():
        return {}
    stored = Sweep.load(path)
    same = stored.fingerprint == wanted.fingerprint and stored.weights == wanted.weights
    if not same or abs(stored.clean - wanted.clean) > 1e-9:
        raise ResumeError(
            f"{path} holds a sweep of {'other data' if same else 'other weights'} ({stored.task}, exact weights score "
            f"{stored.clean:.6g}; here {wanted.task}, {wanted.clean:.6g}); name another file, or delete it"
        )
    return {row.key: row for row in stored.rows}


def _key(way: Programming, settings: list[Any]) -> str:
    """A digest of the law whose chips are measured; one for all ways of reading nothing."""
    law = way.law
    try:
        device: Any = law.device.describe()
    except DataError:
        device = repr(law.device)  # with functions: equal in this process only
    absorb = law.absorb if isinstance(law, Written) else None
    parts: list[Any] = [device, *settings]
    if absorb is not None or bool(way.rule.read.any()):
        process = repr(law.process) if isinstance(law, Written) else ""
        rows = [_hash(way.rule.row(number)) for number in range(law.device.cells)]
        parts += [process, way.rule.limits, way.rule.tolerances, rows, "" if absorb is None else _hash(absorb)]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(_hash(law.cells.theta).encode())
    return digest.hexdigest()[:16]


def _retraining_key(method: Retraining, budget: float, seed: int) -> str:
    """A digest of what a row of in-situ retraining depends on, but for the data."""
    names = ("learning_rate", "momentum", "chips", "steps")
    settings = ["in situ", *(getattr(method, name) for name in names), asdict(method.full), budget, seed]
    device = method.cells.device.describe() if not callable(method.cells.device.analog) else repr(method.cells.device)
    digest = hashlib.sha256(json.dumps([device, *settings]).encode())
    digest.update(_hash(method.cells.theta).encode())
    return digest.hexdigest()[:16]


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor.detach().to("cpu").contiguous()).data).hexdigest()[:16]


def _row(found: dict[str, Any]) -> Row:
    numbers = {name: _number(found[name]) for name in (*_PLAIN[1:], "low", "high")}
    return Row(str(found["method"]), accuracy=estimate_of(found["accuracy"]), key=str(found["key"]), **numbers)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} where a finite number was wanted")
    return float(value)

"""What `cim sweep`, `cim plan` and `cim evaluate` do."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from weightbank.cim import Device, Plan, WriteVerify, each_chip, sweep, write_verify
from weightbank.cim.plan import trial_to_dict
from weightbank.cim.sweep import BUDGETS, Sweep
from weightbank.cli.cim_methods import IN_SITU, Scores, methods, policy_of
from weightbank.cli.cim_network import Wanted, facts, prepared
from weightbank.cli.cim_scores import cells_of
from weightbank.cli.console import say, say_wrapped, show_json, show_table
from weightbank.evaluation import Estimate
from weightbank.report import accuracy_figure, drawing, save_figure
from weightbank.store.media import Directory

SWEEP_FILE = "sweep.json"


def show_sweep(
    wanted: Wanted,
    device: Device,
    process: WriteVerify | None,
    names: list[str] | None,
    budgets: Sequence[float] | None,
    which: str,
    output: Path | None,
    *,
    chips: int,
    stderr: float | None,
    seed: int,
    json: bool,
    retraining: str = "",
) -> None:
    """Sweep, print a table, and leave `sweep.json`, `sweep.csv` and `sweep.svg` in a directory."""
    if output is not None:
        drawing()  # or say what is missing before minutes of work
    network = prepared(wanted)
    cells = cells_of(network, device)
    ways = methods(names, cells, Scores(network, seed=seed), which, process, retraining)
    path = None if output is None else output / SWEEP_FILE
    asked = tuple(budgets) if budgets else BUDGETS
    found = sweep(network.task, ways, asked, chips=chips, stderr=stderr, seed=seed, path=path)
    files: list[Path] = []
    if output is not None and path is not None:
        files = [path, *save_views(found, output, f"{network.model}, {network.data.partition(':')[0]}")]
    if json:
        about = {"made_of": facts(wanted), "device": device.describe(), "scores": which}
        process_ = None if process is None else asdict(process)
        show_json({**about, "process": process_, **found.to_dict(), "files": [str(file) for file in files]})
        return
    show_rows(found, asked)
    for file in files:
        say(f"in {file}")


def save_views(found: Sweep, directory: Path, title: str) -> list[Path]:
    """The table and the figure of a sweep, beside its JSON file."""
    Directory(directory).replace("sweep.csv", found.csv().encode())
    figure = directory / "sweep.svg"
    save_figure(accuracy_figure(found, title=title), figure)
    return [directory / "sweep.csv", figure]


def show_rows(found: Sweep, budgets: Sequence[float]) -> None:
    """One line per method, one column per budget: mean score ± standard error, accuracies in percent."""
    rows = {(row.method, row.budget): row.accuracy for row in found.rows}
    percent = min(found.clean, *(row.accuracy.mean for row in found.rows)) >= 0
    write = _percent if percent else str
    table = [[name, *(write(rows[name, budget]) for budget in budgets)] for name in found.methods]
    clean = f"accuracy in % with the exact weights {100 * found.clean:.2f}" if percent else f"-loss {found.clean:.4g}"
    say_wrapped(
        f"{found.task}: test {clean}, and on average over chips when so many of the write cycles of verifying "
        "everything are spent:"
    )
    show_table(["method", *(f"{100 * budget:g} %" for budget in budgets)], table)
    chips = sorted({row.accuracy.n for row in found.rows if row.method != IN_SITU})
    if chips:
        say_wrapped(
            f"± one standard error over {' to '.join(f'{n:,}' for n in (chips[0], chips[-1])[: len(chips)])} chips, "
            "the same for all methods, so two of them differ by less chance than that says."
        )
    if IN_SITU in found.methods:
        last = found.of(IN_SITU)[-1]
        say_wrapped(
            f"In situ: {last.accuracy.n} chips of their own, each trained on and on without verifying, and at the end "
            f"after {100 * last.write_cycles:.3g}% of the write cycles; what its whole steps left over is not spent."
        )
    middle = [row for row in found.rows if row.budget == sorted(budgets)[len(budgets) // 2]]
    least, most = (pick(middle, key=lambda row: row.reads) for pick in (min, max))
    if most.reads > least.reads:
        say_wrapped(
            f"Reads are not in these budgets: at {100 * most.budget:g}% each cell is read {least.reads:.2f} times "
            f"({least.method}) to {most.reads:.2f} times ({most.method})."
        )


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.1f}±{100 * (estimate.stderr or 0.0):.1f}"


def show_plan(
    wanted: Wanted,
    device: Device,
    process: WriteVerify | None,
    policy: str,
    which: str,
    output: Path,
    *,
    max_drop: float,
    step: float,
    confidence: float,
    passes: int,
    seed: int,
    json: bool,
) -> bool:
    """Search the smallest budget that keeps the accuracy, save the plan, say what it is; whether the target is met."""
    chosen = policy_of(policy)
    network = prepared(wanted)
    cells_of(network, device)
    plan = write_verify(
        network.task,
        device,
        Scores(network, seed=wanted.seed).of(which),
        max_drop=max_drop,
        step=step,
        confidence=confidence,
        policy=chosen,
        process=process,
        passes=passes,
        generator=torch.Generator().manual_seed(seed),
        path=output,
    )
    if json:
        history = [trial_to_dict(trial) for trial in plan.history]
        about = {"file": str(output), "policy": policy, "scores": which, "made_of": facts(wanted)}
        show_json({**about, **_promise(plan), "device": plan.device.describe(), "history": history})
    else:
        say_wrapped(str(plan))
        say(f"{len(plan.history)} budgets were tried; the plan is in {output}")
    return plan.met


def _promise(plan: Plan) -> dict[str, Any]:
    names = ("fraction", "write_cycles", "total_write_cycles", "reads", "clean", "max_drop", "confidence", "met")
    return {**{name: getattr(plan, name) for name in names}, "accuracy": plan.accuracy.to_dict()}


def show_evaluation(path: Path, wanted: Wanted, *, chips: int, stderr: float | None, seed: int, json: bool) -> None:
    """Program so many later chips by a plan and evaluate each on all test data."""
    plan = Plan.load(path)
    network = prepared(wanted)
    found = each_chip(
        network.task, plan.apply(network.task), chips, stderr=stderr, generator=torch.Generator().manual_seed(seed)
    )
    within = sum(value >= plan.clean - plan.max_drop for value in found.values) / found.n
    if json:
        some = {"quantile_05": found.quantile(0.05), "within": within}
        show_json({"plan": str(path), **_promise(plan), "chips": found.to_dict(), **some, "made_of": facts(wanted)})
        return
    say_wrapped(f"The plan: {plan}")
    show_table(
        ["", "mean", "std", "worst", "5 % below", "within the drop"],
        [
            [
                f"{found.n} later chips",
                found.text,
                f"{(found.stderr or 0.0) * found.n**0.5:.4f}",
                f"{found.min:.4f}",
                f"{found.quantile(0.05):.4f}",
                f"{100 * within:.0f} %",
            ]
        ],
    )
    say_wrapped("The drop was promised of the mean over chips; single chips may be worse.")

"""What `posterior plan` shows: the bytes of a posterior as they will be, and by the published rule."""

from pathlib import Path

import torch

from weightbank.cli.console import note, say, show_json, show_table
from weightbank.distributions import Keep, Sketch, Window
from weightbank.errors import FormatError, StoreError
from weightbank.posterior import paper_bytes, paper_epochs, paper_table, plan
from weightbank.posterior.paper import PAPER_MODELS, PAPER_TARGETS
from weightbank.posterior.plan import Plan
from weightbank.sizes import readable
from weightbank.zoo import build, mlp


def show_plan(
    model: str,
    iterates: int | None,
    format: str,
    keep: str,
    path: Path,
    *,
    samples: int,
    budget: int | None,
    ram: int | None,
    measure: bool,
    json: bool,
) -> bool:
    """Print a plan; whether it fits."""

    def planned_with(measure: bool) -> Plan:
        return plan(
            count_weights(model),
            iterates=iterates,
            format=format,
            keep=parse_keep(keep),
            where=path,
            samples=samples,
            budget=budget,
            ram=ram,
            checkpoint=True,
            measure=measure,
        )

    try:
        planned = planned_with(measure)
    except StoreError as error:
        if not measure:
            raise
        note(f"no times, as nothing can be written there now: {error}")
        planned = planned_with(False)
    if json:
        show_json(planned.to_dict())
    else:
        say(str(planned))
    return not planned.shortage


def show_paper(model: str | None, iterates: int | None, budget: int | None, *, json: bool) -> None:
    """Print what the published rule says of one model, or its whole table of epochs."""
    if model is None:
        table = paper_table()
        if json:
            show_json({"rule": "12 n (k + 3) + 12", "epochs": {f"{target} GB": row for target, row in table.items()}})
            return
        say("Epochs for so many GB by the published rule: bytes = 12 n (k + 3) + 12, k = 600 rows an epoch")
        rows = [[f"{target} GB", *(f"{row[name]:,}" for name in PAPER_MODELS)] for target, row in table.items()]
        show_table(["", *PAPER_MODELS], rows)
        say("A float32 row takes 4 bytes per weight, so these posteriors really take about a third.")
        return
    size = count_weights(model)
    targets = [target * 10**9 for target in PAPER_TARGETS] if budget is None else [budget]
    epochs = {target: paper_epochs(size, target) for target in targets}
    count = None if iterates is None else paper_bytes(size, iterates)
    if json:
        found = {"weights": size, "iterates": iterates, "bytes": count}
        show_json({"rule": "12 n (k + 3) + 12", **found, "epochs": {str(key): value for key, value in epochs.items()}})
        return
    say(f"{size:,} weights, by the published rule: bytes = 12 n (k + 3) + 12")
    if count is not None:
        say(f"{iterates:,} iterates: {count:,} bytes ({readable(count)})")
    for target, found_epochs in epochs.items():
        say(f"{target / 1e9:g} GB: {found_epochs:,} epochs of 600 iterates")


def parse_keep(text: str) -> Keep:
    """`all`, `window:20` or `sketch:50` as what `Moments` takes; `FormatError` for another text."""
    kind, _, count = text.partition(":")
    if text == "all":
        return "all"
    if kind in ("window", "sketch") and count.isdecimal() and int(count) > 0:
        return Window(int(count)) if kind == "window" else Sketch(int(count))
    raise FormatError(f"keep={text!r}; wanted all, window:20 or sketch:50 (with any number of rows)")


def count_weights(text: str) -> int:
    """The weights of a model by name, or a number such as 2797010, 2_797_010, 110M or 7B."""
    plain = text.replace("_", "").replace(",", "").upper()
    factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(plain[-1:], 1)
    digits = plain[:-1] if factor > 1 else plain
    if digits.replace(".", "", 1).isdecimal():
        return round(float(digits) * factor) if factor > 1 or "." in digits else int(digits)
    with torch.device("meta"):
        model = mlp(64, 64, 10) if text == "mlp" else build(text)
    return sum(weight.numel() for weight in model.parameters())

"""What more rows, and fewer bits, do to predictions: NLL, calibration and OOD detection over several training seeds.

    python benchmarks/predictions.py --mnist FOLDER --fashion FOLDER [--seeds 3]

FOLDER holds the four IDX files of MNIST or Fashion-MNIST; each is the other's out-of-distribution set. Per seed a
published network is trained, then every minibatch is recorded three times: in float32, in blocks of 8 and of 4 bits.
Standard errors are over seeds; "paired" is the difference to float32 rows of the same run.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
import torch.nn.functional as F
from measure import table

import weightbank as wb
from weightbank.data import mnist_family
from weightbank.posterior import Compared, compare, record
from weightbank.zoo import build

FORMATS = {"fp32": "fp32", "8-bit rows": "bfp8", "4-bit rows": "bfp4"}
SETTINGS = {
    "mnist": {"model": "model_2conv2fc", "epochs": 5, "skip": 3, "rate": 0.01, "every": 2},
    "fashion": {"model": "model_2fc", "epochs": 8, "skip": 6, "rate": 0.05, "every": 4},
}


def run(name: str, folders: dict[str, Path], seed: int, samples: int, examples: int) -> list[Compared]:
    setting = SETTINGS[name]
    torch.manual_seed(seed)
    data = mnist_family(folders[name])
    other = mnist_family(folders["fashion" if name == "mnist" else "mnist"])
    test = tuple(part[:examples] for part in data.test)
    task = wb.Task(name, build(str(setting["model"])), F.nll_loss, data.train, test, batch_size=100)
    task.train.generator.manual_seed(seed)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(task.model.parameters(), lr=float(setting["rate"]), momentum=0.9, weight_decay=3e-4)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        moments = {
            label: wb.Moments(task.layout, rows=wb.RowLog(Path(folder) / format, format=format))
            for label, format in FORMATS.items()
        }
        record(
            task,
            optimizer,
            moments,
            epochs=int(setting["epochs"]),
            skip_epochs=int(setting["skip"]),
            every=int(setting["every"]),
        )
        others = {label: taker for label, taker in moments.items() if label != "fp32"}
        ood = other.test[0][:examples]
        compared = compare(task, moments["fp32"], samples=samples, ood=ood, others=others)
        for taker in moments.values():
            taker.close()
    return compared


def mean(values: list[float]) -> str:
    found = wb.Estimate.of(values)
    return f"{found.mean:.4f}" + ("" if found.stderr is None else f" ± {found.stderr:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--examples", type=int, default=5_000)
    chosen = parser.parse_args()
    folders = {"mnist": chosen.mnist, "fashion": chosen.fashion}
    for name, setting in SETTINGS.items():
        runs = []
        for seed in range(chosen.seeds):
            print(f"{name}, seed {seed} ...", file=sys.stderr)
            runs.append(run(name, folders, seed, chosen.samples, chosen.examples))
        rows = [("law", "NLL", "accuracy", "ECE", "OOD AUROC", "MB on disk")]
        for laws in zip(*runs, strict=True):
            metrics = [[law.metrics[metric].mean for law in laws] for metric in ("nll", "accuracy", "ece", "auroc")]
            rows.append((laws[0].name, *(mean(values) for values in metrics), f"{laws[0].disk / 1e6:.1f}"))
        table(
            f"{name}: {setting['model']}, {chosen.seeds} seeds, {chosen.samples} draws, {chosen.examples} test images",
            rows,
        )
        for label in list(FORMATS)[1:]:
            changes, errors = [], []
            for laws in runs:
                full = next(law for law in laws if law.role == "all")
                low = next(law for law in laws if law.name == label)
                changes.append(low.metrics["nll"].mean - full.metrics["nll"].mean)
                errors.append(full.metrics["nll"].stderr or 0.0)
            print(
                f"{label}: NLL changes by {mean(changes)} (paired), at most {max(map(abs, changes)):.5f} in a run; "
                f"the standard error of an NLL here is {sum(errors) / len(errors):.4f}: "
                f"{sum(errors) / len(errors) / max(max(map(abs, changes)), 1e-12):.0f} times that"
            )


if __name__ == "__main__":
    main()

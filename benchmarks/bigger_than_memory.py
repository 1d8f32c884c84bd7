"""A posterior of 4 GB recorded, reopened, sampled and evaluated by a process that may hold 1.5 GB.

    python benchmarks/bigger_than_memory.py --directory /somewhere/with/5GB

The limit is the kernel's: RLIMIT_DATA, which refuses every private allocation beyond it (interpreter included), set
before torch is imported. As a control, the same process then tries to hold the rows in memory and is refused.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measure import in_own_process, limited_data, peak_megabytes

LIMIT, ROWS = 1_500_000_000, 1260


def limited(path: Path, format: str) -> dict:
    with limited_data(LIMIT):
        import torch
        import torch.nn.functional as F

        import weightbank as wb
        from weightbank.zoo import model_2fc

        generator = torch.Generator().manual_seed(0)
        x, y = torch.rand(2000, 784, generator=generator), torch.arange(2000) % 10
        torch.manual_seed(0)
        task = wb.Task("large", model_2fc(), F.nll_loss, (x, y), (x[:500], y[:500]))
        found: dict = {"weights": task.layout.size}
        start = time.perf_counter()
        moments = wb.Moments(task.layout, rows=wb.RowLog(path, format=format))
        theta = task.theta()
        for _ in range(ROWS):
            theta += 1e-3 * torch.randn(1, generator=generator)
            moments.update(theta)
        moments.close()
        found["record_s"] = time.perf_counter() - start
        found["bytes"] = moments.rows.nbytes if moments.rows else 0

        start = time.perf_counter()
        moments = wb.Moments(task.layout, rows=wb.RowLog(path))
        found["reopen_s"] = time.perf_counter() - start
        start = time.perf_counter()
        draws = moments.gaussian().sample(30, generator=torch.Generator().manual_seed(0))
        found["sample_s"] = time.perf_counter() - start
        del draws
        start = time.perf_counter()
        report = wb.evaluate(task, moments.gaussian(), samples=10)
        found["evaluate_s"], found["nll"] = time.perf_counter() - start, report.nll.mean
        found["peak_mb"] = peak_megabytes()
        try:
            torch.empty(ROWS, task.layout.size)
            found["control"] = "held in memory after all: the limit does not work"
        except RuntimeError as error:
            found["control"] = f"refused ({str(error).splitlines()[0][:60]}...)"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.path:
        print(json.dumps(limited(chosen.path, "fp32")))
        return
    path = Path(tempfile.mkdtemp(dir=chosen.directory))
    try:
        print("running ...", file=sys.stderr)
        found = in_own_process(__file__, "--path", str(path))
    finally:
        shutil.rmtree(path)
    print(
        f"{ROWS} rows of {found['weights']:,} weights, {found['bytes'] / 1e9:.2f} GB on disk, in a process limited to "
        f"{LIMIT / 1e9:.1f} GB: recorded in {found['record_s']:.1f} s, reopened in {found['reopen_s']:.2f} s, "
        f"30 draws in {found['sample_s']:.1f} s, evaluated in {found['evaluate_s']:.1f} s; "
        f"peak RSS {found['peak_mb']:.0f} MB, a {found['bytes'] / 1e6 / found['peak_mb']:.1f}th of the posterior.\n"
        f"control, all rows in memory: {found['control']}"
    )


if __name__ == "__main__":
    main()

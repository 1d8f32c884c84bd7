"""Recording an iterate, against the published layout and against the floor (memcpy, one write of the same bytes).

    python benchmarks/update.py --directory /somewhere/with/5GB

n = 795,010 weights (model_2fc), K = 600 rows, each contender in a process of its own with one thread.
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

import numpy as np
from measure import bytes_written, in_own_process, peak_megabytes, table, times
from published import PublishedPosterior

N, DURABLE = 795_010, 24


def iterates() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    center = generator.standard_normal(N, dtype=np.float32)
    return [center + np.float32(0.01) * generator.standard_normal(N, dtype=np.float32) for _ in range(5)]


def summary(taken: np.ndarray, wall: float, rows: int, payload: int, written: int) -> dict:
    return {
        "median_ms": float(np.median(taken[1:])),
        "mean_ms": float(np.mean(taken[1:])),
        "p10_ms": float(np.quantile(taken[1:], 0.1)),
        "first_ms": float(taken[0]),
        "total_s": wall,
        "amplification": written / payload,
        "peak_mb": peak_megabytes(),
        "rows": rows,
    }


def ours(path: Path, rows: int, format: str, durable: bool) -> dict:
    import torch

    from weightbank import Layout, Moments, RowLog
    from weightbank.layout import Entry

    layout = Layout((Entry("w", (N,), 0, torch.float32),))
    thetas = [torch.from_numpy(theta) for theta in iterates()]
    log = RowLog(path, format=format, durability="commit" if durable else "process", group=1 if durable else 32)
    moments = Moments(layout, rows=log)
    before = bytes_written()

    def update(number: int) -> None:
        moments.update(thetas[number % 5])
        if durable:
            log.flush()

    start = time.perf_counter()
    taken = times(update, rows)
    moments.close()
    wall = time.perf_counter() - start
    os.sync()
    return summary(taken, wall, rows, rows * log.manifest.geometry.row_bytes, bytes_written() - before)


def rival(path: Path, rows: int, durable: bool) -> dict:
    thetas = [theta[:, None] for theta in iterates()]
    posterior = PublishedPosterior(N, 600, path)
    before = bytes_written()
    start = time.perf_counter()
    taken = times(lambda number: posterior.update(thetas[number % 5], durable=durable), rows)
    posterior.deviations.flush()
    wall = time.perf_counter() - start
    return summary(taken, wall, rows, rows * 4 * N, bytes_written() - before)


def floor(path: Path) -> dict:
    theta, out = iterates()[0], np.empty(N, np.float32)
    copy = times(lambda _: np.copyto(out, theta), 200)
    descriptor = os.open(path / "floor", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 64 * 4 * N)
    write = times(lambda number: os.pwrite(descriptor, theta, (number % 64) * 4 * N), 256)[64:]

    def durable(number: int) -> None:
        os.pwrite(descriptor, theta, number * 4 * N)
        os.fdatasync(descriptor)

    return {
        "copy_ms": float(np.median(copy)),
        "write_ms": float(np.median(write)),
        "durable_ms": float(np.median(times(durable, 32))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=600, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    path = Path(tempfile.mkdtemp(dir=chosen.directory))
    try:
        if chosen.contender:
            kind, _, durable = chosen.contender.partition("+")
            if kind == "floor":
                found = floor(path)
            elif kind == "published":
                found = rival(path, chosen.rows, bool(durable))
            else:
                found = ours(path, chosen.rows, kind, bool(durable))
            print(json.dumps(found))
            return
    finally:
        shutil.rmtree(path)

    def run(contender: str, rows: int) -> dict:
        print(f"running {contender}, {rows} rows ...", file=sys.stderr)
        more = ["--directory", str(chosen.directory), "--contender", contender, "--rows", str(rows)]
        return in_own_process(__file__, *more)

    limits = run("floor", 0)
    warm = {name: run(name, 600) for name in ("published", "fp32", "bf16", "bfp8", "bfp4")}
    short = run("fp32", 64)
    durable = {name: run(f"{name}+durable", DURABLE) for name in ("published", "fp32", "bfp8")}
    base = warm["published"]
    table(
        f"update, n = {N:,}, K = 600: milliseconds, and how many times faster than the published layout",
        [
            (
                "rows",
                "median",
                "p10",
                "mean",
                "first",
                "x median",
                "x p10",
                "x mean",
                "x total",
                "bytes written / payload",
                "peak RSS MB",
            )
        ]
        + [
            (
                name,
                f"{r['median_ms']:.2f}",
                f"{r['p10_ms']:.2f}",
                f"{r['mean_ms']:.2f}",
                f"{r['first_ms']:.0f}",
                f"{base['median_ms'] / r['median_ms']:.1f}",
                f"{base['p10_ms'] / r['p10_ms']:.1f}",
                f"{base['mean_ms'] / r['mean_ms']:.1f}",
                f"{base['total_s'] / r['total_s']:.1f}",
                f"{r['amplification']:.3f}",
                f"{r['peak_mb']:.0f}",
            )
            for name, r in warm.items()
        ],
    )
    print(f"peak RSS with 64 rows instead of 600: {short['peak_mb']:.0f} MB against {warm['fp32']['peak_mb']:.0f} MB")
    print(
        f"floor: memcpy {limits['copy_ms']:.2f} ms, write into the page cache {limits['write_ms']:.2f} ms; our fp32 "
        f"update is {warm['fp32']['median_ms'] / (limits['copy_ms'] + limits['write_ms']):.1f} times their sum"
    )
    table(
        "update made durable each time (fdatasync or msync)",
        [("rows", "median ms", "x faster", "x the floor (one pwrite and fdatasync)", "bytes written / payload")]
        + [
            (
                name,
                f"{r['median_ms']:.2f}",
                f"{durable['published']['median_ms'] / r['median_ms']:.1f}",
                f"{r['median_ms'] / limits['durable_ms']:.2f}",
                f"{r['amplification']:.2f}",
            )
            for name, r in durable.items()
        ],
    )


if __name__ == "__main__":
    main()

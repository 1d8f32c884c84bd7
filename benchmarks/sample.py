"""Thirty draws from a posterior on disk, against the published sampler and against reading the rows once.

    python benchmarks/sample.py --directory /somewhere/with/5GB

n = 795,010 weights (model_2fc), K = 600 rows, each contender in a process of its own with one thread. The published
sampler converts the whole float32 (n, K) array to float64 for every draw; three draws are timed and scaled to thirty.
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
from measure import in_own_process, peak_megabytes, table
from published import PublishedPosterior

N, K, S = 795_010, 600, 30


def layout() -> object:
    import torch

    from weightbank import Layout
    from weightbank.layout import Entry

    return Layout((Entry("w", (N,), 0, torch.float32),))


def record(path: Path, format: str) -> dict:
    import torch

    from weightbank import Moments, RowLog

    generator = torch.Generator().manual_seed(0)
    moments = Moments(layout(), rows=RowLog(path, format=format))  # type: ignore[arg-type]
    theta = torch.randn(N, generator=generator)
    noise = [0.01 * torch.randn(N, generator=generator) for _ in range(7)]
    for number in range(K):
        moments.update(theta + noise[number % 7] * (1 + number % 11))
    moments.close()
    return {}


def ours(path: Path) -> dict:
    import torch

    from weightbank import Moments, RowLog

    start_mb = peak_megabytes()
    log = RowLog(path, read_only=True)
    law = Moments(log.manifest.layout, rows=log).gaussian()  # type: ignore[arg-type]
    taken = []
    for seed in range(3):
        start = time.perf_counter()
        draws = law.sample(S, generator=torch.Generator().manual_seed(seed))
        taken.append(time.perf_counter() - start)
        del draws
    return {"seconds": min(taken), "first": taken[0], "over_mb": peak_megabytes() - start_mb}


def published(path: Path) -> dict:
    generator = np.random.default_rng(0)
    posterior = PublishedPosterior(N, K, path)
    for first in range(0, N, 5000):
        block = posterior.deviations[first : first + 5000]
        block[:] = generator.standard_normal(block.shape, dtype=np.float32)
    posterior.square += 1
    posterior.count = K
    start_mb = peak_megabytes()
    start = time.perf_counter()
    for _ in range(3):
        posterior.sample(generator)
    return {"seconds": (time.perf_counter() - start) / 3 * S, "over_mb": peak_megabytes() - start_mb}


def floor(path: Path) -> dict:
    """Read 4 n K bytes once from the page cache, and multiply (S, K) by (K, n) in float32."""
    data = np.ones(16 << 20, np.float32)
    (path / "floor").write_bytes(data.tobytes())
    descriptor = os.open(path / "floor", os.O_RDONLY)
    repeats = round(4 * N * K / data.nbytes)
    start = time.perf_counter()
    for _ in range(repeats):
        os.preadv(descriptor, [data], 0)
    read = (time.perf_counter() - start) / repeats / data.nbytes * 4 * N * K
    small, block = np.ones((32, K), np.float32), np.ones((K, 16_384), np.float32)
    _ = small @ block
    start = time.perf_counter()
    for _ in range(10):
        _ = small @ block
    return {"read": read, "multiply": (time.perf_counter() - start) / 10 * N / 16_384 * S / 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contender:
        kind, _, argument = chosen.contender.partition(":")
        work = {"record": lambda: record(chosen.path, argument), "ours": lambda: ours(chosen.path)}
        work |= {"published": lambda: published(chosen.path), "floor": lambda: floor(chosen.path)}
        print(json.dumps(work[kind]()))
        return

    def run(contender: str, path: Path) -> dict:
        print(f"running {contender} ...", file=sys.stderr)
        return in_own_process(__file__, "--contender", contender, "--path", str(path))

    results = {}
    for name in ("published", "fp32", "bf16", "bfp8", "bfp4", "floor"):
        path = Path(tempfile.mkdtemp(dir=chosen.directory))
        try:
            if name in ("published", "floor"):
                results[name] = run(name, path)
            else:
                run(f"record:{name}", path)
                results[name] = run("ours", path)
        finally:
            shutil.rmtree(path)
    base, limits = results.pop("published"), results.pop("floor")
    bound = S * 4 * N / 1e6 + 100
    table(
        f"{S} draws, n = {N:,}, K = {K}: seconds, memory (bound: interpreter + {bound:.0f} MB)",
        [("rows", "seconds", "x faster", "MB above interpreter")]
        + [("published", f"{base['seconds']:.1f}", "1.0", f"{base['over_mb']:.0f}")]
        + [
            (name, f"{r['seconds']:.2f}", f"{base['seconds'] / r['seconds']:.0f}", f"{r['over_mb']:.0f}")
            for name, r in results.items()
        ],
    )
    both = limits["read"] + limits["multiply"]
    print(
        f"floor: read the rows once {limits['read']:.2f} s, multiply {limits['multiply']:.2f} s; "
        f"fp32 takes {results['fp32']['seconds'] / both:.1f} times that (and draws {S * N / 1e6:.0f} million normals)"
    )


if __name__ == "__main__":
    main()

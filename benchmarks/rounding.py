"""Stochastic rounding to 8-bit blocks, against a copy (the floor), the published formula in torch, and qtorch.

    python benchmarks/rounding.py

A tensor of 128 x 64 x 32 x 32 float32 (an activation, 33.5 MB), one thread, results into a given buffer, every
contender in a process of its own; milliseconds of CPU time, minimum of the repeats, and wall time. The published
formula (SWALP, Yang et al., ICML 2019: floor(x / step + U), U from torch.rand) allocates as published.

qtorch is no dependency and compiles its kernels at import; it takes part where it can be imported. To have it, make an
environment of its own with torch, numpy, numba, this library and `pip install qtorch ninja setuptools` (and a C++
compiler), and run this file there.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import in_own_process, table
from torch import Tensor

SHAPE = (128, 64, 32, 32)
BLOCKS = {"tensor": None, "dim 0": 0, "tiles of 32": 32}


def published(x: Tensor, bits: int, per_channel: bool) -> Tensor:
    """As published: E = floor(log2 max|x|) per tensor or per index of dimension 0, then floor(x / step + U) * step."""
    if per_channel:
        most = x.abs().view(len(x), -1).amax(1).view(-1, *[1] * (x.ndim - 1))
        exponent = torch.floor(torch.log2(most)).clamp(-128, 127)
    else:
        exponent = torch.floor(torch.log2(x.abs().max())).clamp(-128, 127)
    scaled = x * 2 ** (-exponent + bits - 2)
    codes = torch.floor(scaled.add_(torch.rand_like(scaled))).clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes * 2 ** (exponent - (bits - 2))


def contender(name: str, block: str) -> Callable[[], object]:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    if name == "copy":
        out = torch.zeros_like(x)
        return lambda: out.copy_(x)
    if name == "published":
        return lambda: published(x, 8, block == "dim 0")
    if name == "qtorch":
        from qtorch.quant import block_quantize

        return lambda: block_quantize(x, 8, dim=0 if block == "dim 0" else -1, rounding="stochastic")
    from weightbank.formats import BlockFloatingPoint, Per, format_of, key

    word, out = key(0, "activation", 1), torch.zeros_like(x)
    blocks = {"tensor": None, "dim 0": Per(0), "tiles of 32": 32}
    fmt = BlockFloatingPoint(8, blocks[block]) if block in blocks else format_of(block)
    if name == "pack":
        return lambda: fmt.pack(x, rounding="stochastic", key=word)
    if name == "reference":
        from weightbank.formats import coded

        coded.available = lambda: False
    rounding = "nearest" if name == "nearest" else "stochastic"
    return lambda: fmt.quantize(x, rounding=rounding, key=word, out=out)


def measured(work: Callable[[], object], repeats: int) -> dict:
    torch.set_num_threads(1)
    work()
    cpu, wall = [], []
    for _ in range(repeats):
        start = time.thread_time(), time.perf_counter()
        work()
        cpu.append(time.thread_time() - start[0])
        wall.append(time.perf_counter() - start[1])
    return {"cpu_ms": 1e3 * min(cpu), "wall_ms": 1e3 * min(wall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contender:
        print(json.dumps(measured(contender(*chosen.contender), chosen.repeats)))
        return

    pairs = [("copy", "tensor"), ("published", "tensor"), ("published", "dim 0")]
    if importlib.util.find_spec("qtorch"):
        pairs += [("qtorch", "tensor"), ("qtorch", "dim 0")]
    pairs += [("reference", "dim 0")]
    pairs += [(name, block) for name in ("nearest", "stochastic", "pack") for block in BLOCKS]
    pairs += [("stochastic", name) for name in ("mxint8", "mxfp8_e4m3", "mxfp4_e2m1", "fp8_e4m3")]
    found = {
        f"{name}, {block}": in_own_process(__file__, "--repeats", str(chosen.repeats), "--contender", name, block)
        for name, block in pairs
    }
    if chosen.json:
        print(json.dumps(found))
        return
    copy, slow = found["copy, tensor"]["cpu_ms"], found["published, dim 0"]["cpu_ms"]
    rows = [(name, t["cpu_ms"], t["wall_ms"], t["cpu_ms"] / copy, slow / t["cpu_ms"]) for name, t in found.items()]
    table(
        "8-bit rounding of 8,388,608 float32, one thread: milliseconds",
        [("contender", "cpu", "wall", "x copy", "x faster than published, dim 0")]
        + [
            (name, f"{cpu:.2f}", f"{wall:.2f}", f"{copies:.2f}", f"{faster:.1f}")
            for name, cpu, wall, copies, faster in rows
        ],
    )


if __name__ == "__main__":
    main()

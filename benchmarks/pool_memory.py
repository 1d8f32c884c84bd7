"""Memory that a process holds for the weights of five networks it serves: measured, from a pool and apart.

    python benchmarks/pool_memory.py [--weights 4000000]

A child process opens the file of a pool (mapped), or one .safetensors file per network, runs every network once, and
tells how much its resident memory grew (Pss of /proc/self/smaps_rollup: file pages count, shared ones by their part).
Before that it has run a network of the same shape that is then dropped, so that libraries and activations are there.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc

import torch
import torch.nn.functional as F
from measure import in_own_process, table
from safetensors.torch import load_file, save_file

import weightbank as wb
from weightbank.paging import Pool
from weightbank.zoo import mlp

NETWORKS, INPUTS = 5, 256


def build(width: int) -> torch.nn.Module:
    return mlp(INPUTS, width, width, 10)


def resident() -> int:
    """Bytes of this process, shared pages by their part."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("no Pss in /proc/self/smaps_rollup")


def serve(way: str, folder: Path, width: int) -> None:
    """What a child does: serve from the files of `folder` and print how much memory that took."""
    x = torch.zeros(8, INPUTS)
    names = [f"network {number}" for number in range(NETWORKS)]
    with torch.no_grad():
        build(width).eval()(x)
        first = Pool.open(folder / "small.safetensors", {"small": mlp(4, 4, 2)})
        with first.use("small") as net:
            net(torch.zeros(1, 4))
        del first, net
        with torch.device("meta"):
            models = {name: build(width) for name in names}
        before = resident()
        if way == "pool":
            pool = Pool.open(folder / "pool.safetensors", models)
            for name in names:
                with pool.use(name) as net:
                    net(x)
        else:
            loaded = []
            for name in names:
                models[name].load_state_dict(load_file(folder / f"{name}.safetensors"), assign=True)
                loaded.append(models[name].eval()(x))
        after = resident()
    print(json.dumps({"bytes": after - before}))


def pooled(kind: str, width: int) -> Pool:
    """Five networks, one way of storing them."""
    dtype, placement = kind.split(", ")
    size, x = wb.Layout.of(build(width)).size, torch.zeros(4, INPUTS)
    pool = Pool(round(1.02 * size), dtype=dtype)
    for number in range(NETWORKS):
        torch.manual_seed(number)
        task = wb.Task(f"network {number}", build(width), F.cross_entropy, (x, x), (x, x))
        pool.add(task, importance=torch.ones(size), placement=placement, page_size=4_096)  # type: ignore[arg-type]
    return pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=4_000_000)
    parser.add_argument("--child", nargs=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.child:
        serve(chosen.child[0], Path(chosen.child[1]), int(chosen.child[2]))
        return
    width = round((-(INPUTS + 12) + ((INPUTS + 12) ** 2 + 4 * chosen.weights) ** 0.5) / 2)
    size = wb.Layout.of(build(width)).size
    rows = [("", "computed MB", "measured MB", "of the pool", "largest layer MB")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = Pool(64)
        small = (torch.zeros(2, 4), torch.zeros(2))
        tiny.add(wb.Task("small", mlp(4, 4, 2), F.mse_loss, small, small), importance=torch.ones(30))
        tiny.save(folder / "small.safetensors")
        for number in range(NETWORKS):
            torch.manual_seed(number)
            save_file(build(width).state_dict(), folder / f"network {number}.safetensors")
        shares = {}
        for kind in ("fp32, extents", "fp32, pages", "bfp8, extents", "apart"):
            owner = apart = 4 * size * NETWORKS
            if kind != "apart":
                pool = pooled(kind, width)
                pool.save(folder / "pool.safetensors", importance=False)
                owner = pool.generation.owner.nbytes
                del pool
            way = kind if kind == "apart" else "pool"
            measured = in_own_process(__file__, "--child", way, str(folder), str(width))["bytes"]
            shares[kind] = measured / owner
            layer = "" if kind in ("fp32, extents", "apart") else f"{4 * width**2 / 1e6:.2f}"
            rows.append((kind, f"{owner / 1e6:.2f}", f"{measured / 1e6:.2f}", f"{shares[kind]:.3f}", layer))
    table(f"{NETWORKS} networks of {size:,} weights, {apart / 1e6:.1f} MB", rows)
    print("a pool may take a fifth more than its owner: " + ("yes" if shares["fp32, extents"] < 1.2 else "NO"))
    if sys.stdout.isatty():
        print("the children ran each network once; activations of one are in the numbers of all")


if __name__ == "__main__":
    main()

"""Number formats against the same formats of torchao and qtorch: values first, then speed.

    python benchmarks/peers_formats.py [--quick]

torchao (prototype.mx_formats, scale rule "floor") has the OCP Microscaling floats. Both round 24,576 blocks of 32:
normal numbers, many magnitudes, scales down to the least, ties, elements beyond the largest, zeros. The standard
(section 6.3), in float64, says who is right. Known: torchao divides blocks whose scale is 2^-127 by 2^-126 (a limit of
its GPU compiler, it says), so half their value is lost; it keeps the sign of zeros, and ours have none. qtorch rounds
ties up, and adds 6 * 2^E in float32 first, so that what lies within 2^-16 of a tie may go either way: one code apart.

torchao runs eagerly: torch.compile has no type for its scales on a CPU. "out=" is a given buffer, which no peer takes.

The peers are no dependencies, and one that cannot be imported takes no part. They want an environment of their own
(qtorch compiles its loops when first imported: a C++ compiler, and half a minute or more):

    python -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install --constraint constraints.txt --editable . torchao==0.18.0 qtorch==0.3.0 ninja setuptools
    PATH=$PWD/peers/bin:$PATH python benchmarks/peers_formats.py
"""

import argparse
import importlib
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import table
from torch import Tensor

from weightbank.formats import BlockFloatingPoint, Per, format_of, key

ELEMENTS = {  # name, element of torchao, mantissa bits, bias of the exponent, how many codes from zero up are finite
    "mxfp8_e4m3": (torch.float8_e4m3fn, 3, 7, 127),
    "mxfp8_e5m2": (torch.float8_e5m2, 2, 15, 124),
    "mxfp6_e3m2": ("fp6_e3m2", 2, 3, 32),
    "mxfp6_e2m3": ("fp6_e2m3", 3, 1, 32),
    "mxfp4_e2m1": (torch.float4_e2m1fn_x2, 1, 1, 8),
}


def peer(name: str) -> ModuleType | None:
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: what it compiles does not compile
        print(f"{name} takes no part: {str(error).splitlines()[0]}")
        return None


def hard_blocks(count: int) -> Tensor:
    """(6 * count, 32) numbers, among them the ones on which formats could disagree."""
    draw = torch.Generator().manual_seed(0)

    def whole(low: int, high: int, width: int = 32) -> Tensor:
        return torch.randint(low, high, (count, width), generator=draw).double()

    uniform = torch.rand(3, count, 32, generator=draw, dtype=torch.float64)
    sign = whole(0, 2) * 2 - 1
    return torch.cat([
        torch.randn(count, 32, generator=draw),
        sign * (1 + uniform[0]) * 2 ** (whole(-100, 128, 1) - whole(0, 13)),
        sign * (1 + uniform[1]) * 2 ** (whole(-149, -104, 1) - whole(0, 13)),  # the least scales, and subnormals
        whole(-63, 64) * 2 ** (whole(-100, 100, 1) - 5),  # ties
        sign * (2 - uniform[2] / 4 - 1e-7) * 2 ** (whole(-100, 128, 1) - whole(0, 2)),  # up to the largest float
        sign * whole(0, 2) * whole(0, 2, 1),  # zeros and ones, or zeros only
    ]).float()  # fmt: skip


def standard(x: Tensor, mantissa: int, bias: int, count: int) -> tuple[Tensor, Tensor]:
    """The E8M0 bytes and the values in float64: the nearest of the element's numbers, ties to the even code."""
    code = torch.arange(count)
    field, fraction = code >> mantissa, (code % (1 << mantissa)).double() / (1 << mantissa)
    numbers = (fraction + (field > 0)) * 2.0 ** (field.clamp(min=1) - bias).double()
    shared = torch.frexp(x.abs().amax(1).double()).exponent - torch.frexp(numbers[-1]).exponent
    exponent = torch.where((x == 0).all(1), -127, shared.clamp(-127, 127))
    scale = 2.0 ** exponent[:, None].double()
    above = torch.searchsorted(numbers, scaled := x.double().abs() / scale).clamp(1, count - 1)
    further = (numbers[above] - scaled) - (scaled - numbers[above - 1])
    below = (further > 0) | ((further == 0) & (above % 2 == 1))
    return exponent + 127, numbers[above - below.long()] * scale * x.sign()


def torchao_values(ao: ModuleType, element: object, x: Tensor) -> Tensor:
    return ao.to_dtype(*reversed(ao.to_mx(x, element, 32)), element, 32, torch.float32)


def compare_torchao(ao: ModuleType, count: int) -> None:
    x = hard_blocks(count)
    rows = [("format", "differ", "blocks of 2^-127", "others", "scales", "signs of 0", "ours wrong", "torchao wrong")]
    for name, (element, *grid) in ELEMENTS.items():
        (scales, wanted), stored = standard(x, *grid), format_of(name).pack(x).scales
        ours, theirs = format_of(name).quantize(x), torchao_values(ao, element, x)
        differ, least = ours != theirs, (scales == 0)[:, None]
        signs = ~differ & (ours.signbit() != theirs.signbit())
        bytes_differ = (stored != ao.to_mx(x, element, 32)[0].view(torch.uint8).view(-1)) | (stored != scales)
        found = (differ, differ & least, differ & ~least, bytes_differ, signs, ours != wanted, theirs != wanted)
        rows.append((name, *(f"{int(which.sum()):,}" for which in found)))
    table(f"{x.numel():,} values to nearest: how many differ from torchao's, and from the standard's", rows)


def least_time(work: Callable[[], object], repeats: int) -> float:
    """CPU milliseconds, the least of the repeats after one to warm up."""
    clock = [time.thread_time()]
    for _ in range(repeats + 1):
        work()
        clock.append(time.thread_time())
    return 1e3 * min(later - earlier for earlier, later in pairwise(clock[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the blocks and of the tensor, two repeats")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    repeats, part = (2, 8) if chosen.quick else (9, 1)
    x = torch.randn(128 // part, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    out, word, cases, codes = torch.zeros_like(x), key(0, "x", 1), [], []
    if ao := peer("torchao.prototype.mx_formats.mx_tensor"):
        compare_torchao(ao, 4096 // part)
        for name, (element, *_) in ELEMENTS.items():
            theirs = partial(torchao_values, ao, element, x)
            cases.append((f"torchao, {name}", partial(format_of(name).quantize, x), theirs))
    if qtorch := peer("qtorch.quant"):
        for rounding, dim in product(("nearest", "stochastic"), (-1, 0)):
            fmt, name = BlockFloatingPoint(8, None if dim < 0 else Per(0)), "one block" if dim < 0 else "dim 0"
            ours = partial(fmt.quantize, x, rounding=rounding, key=word)
            theirs = partial(qtorch.block_quantize, x, 8, dim=dim, rounding=rounding)
            cases.append((f"qtorch, {rounding}, {name}", ours, theirs))
            apart = ((ours() - theirs()) * 2.0 ** (6 - fmt.pack(x).scales.float()).view(-1, 1, 1, 1)).abs()
            codes.append((cases[-1][0], *(f"{int(n.sum()):,}" for n in (apart == 0, apart == 1, apart > 1))))
        table(f"8-bit codes of {x.numel():,} values", [("peer", "as ours", "one apart", "further apart"), *codes])

    rows = [("peer", "ours, out=", "ours", "peer", "peer / ours, out=")]
    for name, ours, theirs in cases:
        times = [least_time(each, repeats) for each in (partial(ours, out=out), ours, theirs)]
        rows.append((name, *(f"{ms:.2f}" for ms in times), f"{times[2] / times[0]:.1f}"))
    if cases:
        table(f"CPU milliseconds for {x.numel():,} float32, one thread, least of {repeats} in a row", rows)


if __name__ == "__main__":
    main()

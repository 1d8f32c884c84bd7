"""Number formats against the same formats of torchao and qtorch: values first, then speed.

    python benchmarks/peers_formats.py [--quick] [--compile]

torchao (prototype.mx_formats, scale rule "floor") has the OCP Microscaling floats. Both round 24,576 blocks of 32:
normal numbers, many magnitudes, scales down to the least, ties, elements beyond the largest, zeros. Who is right is
asked of the standard (section 6.3) in float64. Known: torchao divides blocks whose scale is 2^-127 by 2^-126 (a limit
of its GPU compiler, it says), so half their value is lost; and it keeps the sign of zeros, which we do not store.
qtorch has blocks of 8-bit codes, but rounds ties up, so that codes may differ by one. Speed: a tensor of 128 x 64 x
32 x 32 float32, one thread, CPU milliseconds, contenders in turns, the least of the repeats.

The peers are no dependencies, and one that cannot be imported takes no part. They want an environment of their own
(qtorch compiles its loops when first imported: a C++ compiler, and half a minute or more):

    python -m venv peers
    peers/bin/pip install torch==2.13.0
    peers/bin/pip install --constraint constraints.txt . torchao==0.18.0 qtorch==0.3.0 ninja setuptools
    PATH=$PWD/peers/bin:$PATH python benchmarks/peers_formats.py
"""

import argparse
import importlib
import logging
import os
import time
import warnings
from collections.abc import Callable
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
        with warnings.catch_warnings(action="ignore"):
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
    kinds = [
        torch.randn(count, 32, generator=draw),
        sign * (1 + uniform[0]) * 2 ** (whole(-100, 128, 1) - whole(0, 13)),
        sign * (1 + uniform[1]) * 2 ** (whole(-149, -104, 1) - whole(0, 13)),  # the least scales, and subnormals
        whole(-63, 64) * 2 ** (whole(-100, 100, 1) - 5),  # ties
        sign * (2 - uniform[2] / 4 - 1e-7) * 2 ** (whole(-100, 128, 1) - whole(0, 2)),  # up to the largest float
        sign * whole(0, 2) * whole(0, 2, 1),  # zeros and ones, or zeros only
    ]
    return torch.cat(kinds).float()


def standard(x: Tensor, mantissa: int, bias: int, count: int) -> tuple[Tensor, Tensor]:
    """The E8M0 bytes and the values in float64: the nearest of the element's numbers, ties to the even code."""
    code = torch.arange(count)
    field, fraction = code >> mantissa, (code % (1 << mantissa)).double() / (1 << mantissa)
    numbers = (fraction + (field > 0)) * 2.0 ** (field.clamp(min=1) - bias).double()
    shared = torch.frexp(x.abs().amax(1).double()).exponent - torch.frexp(numbers[-1]).exponent
    exponent = torch.where((x == 0).all(1), -127, shared.clamp(-127, 127))
    scale = 2.0 ** exponent[:, None].double()
    scaled = x.double().abs() / scale
    above = torch.searchsorted(numbers, scaled).clamp(1, count - 1)
    to_above, to_below = numbers[above] - scaled, scaled - numbers[above - 1]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return exponent + 127, numbers[above - (~up).long()] * scale * x.sign()


def torchao_values(ao: ModuleType, element: torch.dtype | str) -> Callable[[Tensor], Tensor]:
    return lambda x: ao.to_dtype(*reversed(ao.to_mx(x, element, 32)), element, 32, torch.float32)


def compare_torchao(ao: ModuleType, count: int) -> None:
    x = hard_blocks(count)
    rows = [
        ("format", "differ", "in blocks of 2^-127", "others", "scales", "signs of 0", "ours wrong", "torchao wrong")
    ]
    for name, (element, *grid) in ELEMENTS.items():
        fmt, (scales, wanted) = format_of(name), standard(x, *grid)
        ours, theirs, bytes_of = fmt.quantize(x), torchao_values(ao, element)(x), ao.to_mx(x, element, 32)[0]
        differ, least = ours != theirs, (scales == 0)[:, None]
        signs = ~differ & (ours.signbit() != theirs.signbit())
        scales_differ = (fmt.pack(x).scales != bytes_of.view(torch.uint8).view(-1)) | (fmt.pack(x).scales != scales)
        found = (differ, differ & least, differ & ~least, scales_differ, signs, ours != wanted, theirs != wanted)
        rows.append((name, *(f"{int(which.sum()):,}" for which in found)))
    table(f"{x.numel():,} values to nearest: how many differ from torchao's, and from the standard's", rows)


def least_times(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """CPU milliseconds of each, the least of its turns, after one to warm up."""
    taken: list[list[float]] = []
    for _ in range(repeats + 1):
        taken.append([])
        for work in works:
            start = time.thread_time()
            work()
            taken[-1].append(1e3 * (time.thread_time() - start))
    return [min(times) for times in zip(*taken[1:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the blocks and of the tensor, two repeats")
    parser.add_argument("--compile", action="store_true", help="time torchao under torch.compile instead of eager")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    repeats, part = (2, 8) if chosen.quick else (7, 1)
    x = torch.randn(128 // part, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    out, word, cases, codes = torch.zeros_like(x), key(0, "activation", 1), [], []
    if ao := peer("torchao.prototype.mx_formats.mx_tensor"):
        compare_torchao(ao, 4096 // part)
        for name, (element, *_) in ELEMENTS.items():
            work = torchao_values(ao, element)
            work = torch.compile(work) if chosen.compile else work
            cases.append((f"torchao, {name}", format_of(name), "nearest", lambda work=work: work(x)))
    if qtorch := peer("qtorch.quant"):
        for rounding in ("nearest", "stochastic"):
            for dim, fmt in ((-1, BlockFloatingPoint(8)), (0, BlockFloatingPoint(8, Per(0)))):
                name = f"qtorch, {rounding}, {'one block' if dim < 0 else 'dim 0'}"
                work = lambda dim=dim, rounding=rounding: qtorch.block_quantize(x, 8, dim=dim, rounding=rounding)  # noqa: E731
                cases.append((name, fmt, rounding, work))
                steps = 2.0 ** (fmt.pack(x).scales.float() - 6).view(-1, 1, 1, 1)
                apart = ((fmt.quantize(x, rounding=rounding, key=word) - work()) / steps).abs()
                codes.append((name, *(f"{int(n.sum()):,}" for n in (apart == 0, apart == 1, apart > 1))))
        table(f"8-bit codes of {x.numel():,} values", [("peer", "as ours", "one apart", "further apart"), *codes])

    rows = [("peer", "ours, out=", "ours", "peer", "peer / ours, out=")]
    for name, fmt, rounding, work in cases:
        into, fresh = (
            lambda to=to, fmt=fmt, rounding=rounding: fmt.quantize(x, rounding=rounding, key=word, out=to)
            for to in (out, None)
        )
        times = least_times([into, fresh, work], repeats)
        rows.append((name, *(f"{ms:.2f}" for ms in times), f"{times[2] / times[0]:.1f}"))
    table(f"CPU milliseconds for {x.numel():,} float32, one thread", rows)


if __name__ == "__main__":
    main()

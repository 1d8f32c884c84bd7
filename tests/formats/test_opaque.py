import subprocess
import sys

import pytest
import torch

from weightbank.formats import BlockFloatingPoint, ByDimensions, format_of, key

COMPILED = """
import torch
from weightbank.formats import BlockFloatingPoint, ByDimensions, Mixed, Native, format_of, key

x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
rows = Mixed((BlockFloatingPoint(3, ByDimensions()), Native("bfloat16")), "0110")
for fmt in BlockFloatingPoint(8, ByDimensions()), format_of("mxfp4_e2m1"), Native("bfloat16"), rows:
    for rounding, word in ("nearest", None), ("stochastic", key(0, "w", 1)), ("stochastic", 2**64 - 1):
        def step(x, out):
            return fmt.quantize(x * 2, rounding=rounding, key=word) + 1, fmt.quantize(x, out=out)

        out = torch.empty_like(x)
        torch.compiler.reset()
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(x, out)[0]
        assert torch.equal(compiled, fmt.quantize(x * 2, rounding=rounding, key=word) + 1)
        assert torch.equal(out, fmt.quantize(x))
"""


@pytest.mark.slow
def test_a_compiled_graph_holds_the_rounding_whole_and_gives_the_same_bits():
    # in a process of its own: the compiler cannot look through the run-time type checks of the tests
    done = subprocess.run([sys.executable, "-c", COMPILED], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_operation_is_quantize():
    x = torch.randn(3, 70, generator=torch.Generator().manual_seed(1))
    word = key(0, "w", 1)
    fmt = BlockFloatingPoint(6, ByDimensions())
    rounded = torch.ops.weightbank.quantize(x, repr(fmt), "stochastic", word & 0xFFFFFFFF, word >> 32)
    assert torch.equal(rounded, fmt.quantize(x, rounding="stochastic", key=word))


def test_inside_a_functional_gradient_plain_torch_runs():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    fmt = format_of("bfp8")
    gradient = torch.func.grad(lambda w: (fmt.quantize(w.detach()) * w).sum())(x)
    assert torch.equal(gradient, fmt.quantize(x))


def test_importing_the_formats_does_not_import_the_compiler():
    code = "import weightbank.formats, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PACKED = """
import torch
from weightbank.errors import FormatError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Native, format_of

x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
for fmt in BlockFloatingPoint(8, ByDimensions()), format_of("mxfp4_e2m1"), Native("bfloat16"):
    compiled = torch.compile(lambda x: fmt.pack(x * 2).unpack() + 1, backend="aot_eager")
    assert torch.equal(compiled(x), fmt.quantize(x * 2) + 1)
    for wrong in dict(rounding="stochastic"), dict(out=torch.empty(4, 64, dtype=torch.bfloat16)):
        try:
            torch.compile(lambda x: fmt.quantize(x, **wrong), backend="aot_eager")(x)
        except FormatError:
            continue
        raise AssertionError(f"{fmt} took {wrong}")
"""


@pytest.mark.slow
def test_a_compiled_function_packs_and_refuses_what_an_uncompiled_one_refuses():
    done = subprocess.run([sys.executable, "-c", PACKED], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

import itertools
import subprocess
import sys

import pytest
import torch
from format_oracles import random_bits

from weightbank.formats import BlockFloatingPoint, reference

numba = pytest.importorskip("numba")
from weightbank.formats import kernels  # noqa: E402

FORMATS = [
    BlockFloatingPoint(bits, block, exponent_bits, codes)
    for bits in (8, 4)
    for block in (2, 32, 64, 1024)
    for exponent_bits, codes in ((8, "full"), (8, "symmetric"), (5, "full"), (1, "symmetric"))
]
SIZES = [1, 3, 31, 64, 65, 1000, 4097]


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_encoded_bytes_equal_the_reference_bit_for_bit(fmt):
    generator = torch.Generator().manual_seed(3)
    for size in SIZES:
        for spread, mantissa_bits in itertools.product((None, 0, 1, 6, 40), (0, 4, 8, 23)):
            x = random_bits(size, generator, spread, mantissa_bits)
            if size == 1000:
                x[::7], x[64:200] = -0.0, 0.0
            fast = torch.full((fmt.row_bytes(size),), 0x5A, dtype=torch.uint8)
            slow = torch.full((fmt.row_bytes(size),), 0xA5, dtype=torch.uint8)
            kernels.encode_row(fmt.grid, fmt.columns, x, fast)
            reference.encode_row(fmt.grid, fmt.columns, x, slow)
            assert torch.equal(fast, slow)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_decoded_floats_equal_the_reference_bit_for_bit(fmt):
    generator = torch.Generator().manual_seed(4)
    for size in SIZES:
        raw = torch.randint(0, 256, (3, fmt.row_bytes(size)), generator=generator, dtype=torch.uint8)  # any exponent
        fast, slow = torch.full((3, size), 1.0), torch.full((3, size), 2.0)
        kernels.decode_rows(fmt.grid, fmt.columns, raw, fast)
        reference.decode_rows(fmt.grid, fmt.columns, raw, slow)
        assert torch.equal(fast.view(torch.int32), slow.view(torch.int32))


def test_subnormals_and_the_largest_floats_survive_the_loops():
    most, fmt = torch.finfo(torch.float32).max, BlockFloatingPoint(8, block=2)
    x = torch.tensor([most, -most, 2.0**-127, -(2.0**-127), 2.0**-134, 2.0**-149])
    raw, out = torch.empty(fmt.row_bytes(6), dtype=torch.uint8), torch.empty(1, 6)
    kernels.encode_row(fmt.grid, 2, x, raw)
    kernels.decode_rows(fmt.grid, 2, raw[None], out)
    top = 127 * 2.0**121
    assert out[0].tolist() == [top, -top, 2.0**-127, -(2.0**-127), 2.0**-134, 0.0]


def test_loops_let_go_of_the_interpreter_lock():
    for loop in (kernels._encode8, kernels._encode4, kernels._decode8, kernels._decode4):
        assert loop.targetoptions["nogil"]


def test_importing_the_formats_does_not_import_numba():
    code = "import weightbank.formats, sys; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

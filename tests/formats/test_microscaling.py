import math

import numpy as np
import pytest
import torch
from format_oracles import random_bits

from weightbank.errors import FormatError
from weightbank.formats import BlockFloatingPoint, Microscaling, MiniFloat, Packed, Tile, format_of

ELEMENTS = {  # element, exponent of its largest number
    "mxfp8_e4m3": ("fp8_e4m3", 8),
    "mxfp8_e5m2": ("fp8_e5m2", 15),
    "mxfp6_e3m2": ("fp6_e3m2", 4),
    "mxfp6_e2m3": ("fp6_e2m3", 2),
    "mxfp4_e2m1": ("fp4_e2m1", 2),
}


def oracle(name: str, block: torch.Tensor) -> tuple[int, np.ndarray]:
    """Section 6.3 of the standard on one block, in float64: the E8M0 byte and the values."""
    element, top = ELEMENTS.get(name, ("", 0))
    x = block.double().numpy()
    most = np.abs(x).max()
    shared = max(math.frexp(most)[1] - 1 - top, -127) if most else -127
    if name == "mxint8":
        return shared + 127, np.ldexp(np.clip(np.rint(np.ldexp(x, 6 - shared)), -127, 127), shared - 6)
    scaled = torch.tensor(np.ldexp(x, -shared)).float()
    return shared + 127, np.ldexp(format_of(element).quantize(scaled).double().numpy(), shared)


@pytest.mark.parametrize("name", [*ELEMENTS, "mxint8"])
def test_blocks_of_32_equal_the_standard(name):
    fmt, generator = format_of(name), torch.Generator().manual_seed(0)
    for spread in (0, 2, 12, 60):
        x = random_bits(32 * 50, generator, spread).view(50, 32)
        packed, quantized = fmt.pack(x), fmt.quantize(x)
        for row in range(50):
            scale, values = oracle(name, x[row])
            assert int(packed.scales[row]) == scale
            assert np.array_equal(quantized[row].double().numpy(), values)
        assert torch.equal(fmt.quantize(quantized), quantized)


@pytest.mark.parametrize("name", [*ELEMENTS, "mxint8"])
def test_limits_of_the_scale(name):
    fmt, most = format_of(name), torch.finfo(torch.float32).max
    x = torch.zeros(4, 32)
    x[1, 3], x[2, 5], x[3, 7] = 2.0**-149, most, -most
    packed = fmt.pack(x)
    top = ELEMENTS.get(name, ("", 0))[1]
    assert packed.scales.dtype == torch.uint8
    assert packed.scales.tolist() == [0, 0, 254 - top, 254 - top]
    quantized = fmt.quantize(x)
    assert quantized.isfinite().all()
    assert (quantized[0] == 0).all()
    assert quantized[2, 5] == -quantized[3, 7] > 2.0**127


def test_scale_of_not_a_number_unpacks_to_not_a_number():
    fmt = Microscaling("mxfp4_e2m1")
    packed = fmt.pack(torch.ones(64))
    foreign = Packed(fmt, (64,), packed.codes, torch.tensor([255, 127], dtype=torch.uint8))
    assert foreign.unpack().isnan().tolist() == [True] * 32 + [False] * 32


def test_a_block_of_fp4_by_hand():
    x = torch.tensor([7.9, -3.1, 0.4, 5.0, 0.0] + [0.0] * 27)  # scale 2^(2-2)
    packed = Microscaling("mxfp4_e2m1").pack(x)
    assert packed.scales.tolist() == [127]
    assert packed.unpack()[:5].tolist() == [6.0, -3.0, 0.5, 4.0, 0.0]  # 7.9 saturates, 5.0 ties to the even code
    assert bytes(packed.codes[:3].tolist()) == bytes.fromhex("d7 61 00")


def test_mxint8_is_symmetric_block_floating_point():
    x = random_bits(3200, torch.Generator().manual_seed(1), 20).view(50, 64)
    want = BlockFloatingPoint(8, 32, codes="symmetric").quantize(x)
    assert torch.equal(Microscaling("mxint8").quantize(x), want)


def test_any_axis_and_ragged_ends():
    x = torch.randn(3, 70, 5, generator=torch.Generator().manual_seed(2))
    for name in (*ELEMENTS, "mxint8"):
        along = Microscaling(name, axis=1).quantize(x)
        assert torch.equal(along, Microscaling(name).quantize(x.transpose(1, 2)).transpose(1, 2))
        assert torch.equal(along[:, 64:], Microscaling(name, axis=1).quantize(x[:, 64:]))


def test_other_block_sizes():
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    fmt = Microscaling("mxfp4_e2m1", block=16)
    assert torch.equal(fmt.quantize(x).view(16, 16), fmt.quantize(x.view(16, 16)))
    assert fmt.bits_per_weight == 4.5
    assert Microscaling("mxfp6_e2m3").bits_per_weight == 6.25


def test_a_scale_of_one_leaves_the_bare_element():
    x = torch.rand(32, generator=torch.Generator().manual_seed(4)) * 2 + 4
    assert torch.equal(Microscaling("mxfp4_e2m1").quantize(x), MiniFloat(2, 1, specials="none").quantize(x))


def test_values_are_those_of_gfloat():
    gfloat, infos = pytest.importorskip("gfloat"), pytest.importorskip("gfloat.formats")
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(5))
    for name, info in (
        ("mxfp8_e5m2", infos.format_info_mxfp8_e5m2),
        ("mxfp8_e4m3", infos.format_info_mxfp8_e4m3),
        ("mxfp6_e3m2", infos.format_info_mxfp6_e3m2),
        ("mxfp6_e2m3", infos.format_info_mxfp6_e2m3),
        ("mxfp4_e2m1", infos.format_info_mxfp4_e2m1),
    ):
        want = [
            gfloat.quantize_block(info, row.double().numpy(), gfloat.compute_scale_amax, gfloat.RoundMode.TiesToEven)
            for row in x
        ]
        assert np.array_equal(format_of(name).quantize(x).double().numpy(), np.array(want))


def test_unknown_names_are_refused():
    with pytest.raises(FormatError, match="'mxfp5' is no microscaling format; use one of mxint8, mxfp8_e4m3"):
        Microscaling("mxfp5")
    with pytest.raises(FormatError, match="block is 0"):
        Microscaling("mxint8", block=0)


def test_repr():
    assert repr(Microscaling("mxint8")) == "Microscaling('mxint8')"
    assert repr(Microscaling("mxfp4_e2m1", 0, 16)) == "Microscaling('mxfp4_e2m1', axis=0, block=16)"
    assert Microscaling("mxint8").codec.block == BlockFloatingPoint(8, Tile(-1, 32)).block

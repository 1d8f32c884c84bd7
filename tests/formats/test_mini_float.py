import numpy as np
import pytest
import torch
from format_oracles import every_bfloat16, random_bits

from weightbank.errors import FormatError
from weightbank.formats import MiniFloat, Packed, format_of

OCP = {  # name: (largest, smallest normal, smallest subnormal): tables of OFP8 v1.0 and MX v1.0
    "fp8_e4m3": (448.0, 2.0**-6, 2.0**-9),
    "fp8_e5m2": (57344.0, 2.0**-14, 2.0**-16),
    "fp6_e3m2": (28.0, 0.25, 0.0625),
    "fp6_e2m3": (7.5, 1.0, 0.125),
    "fp4_e2m1": (6.0, 1.0, 0.5),
}
OTHERS = [
    MiniFloat(8, 7),
    MiniFloat(5, 10),
    MiniFloat(8, 1),
    MiniFloat(1, 3),
    MiniFloat(4, 3),
    MiniFloat(4, 3, bias=11, specials="none"),
    MiniFloat(3, 4, bias=-20),
    MiniFloat(3, 4, bias=127, specials="nan"),
]
FORMATS = [*map(format_of, OCP), *OTHERS]


def codes_of(fmt: MiniFloat, x: torch.Tensor) -> list[int]:
    bits = 1 + fmt.exponent + fmt.mantissa
    number = int.from_bytes(bytes(fmt.pack(x).codes.tolist()), "little")
    return [number >> (bits * place) & (2**bits - 1) for place in range(x.numel())]


def meanings(fmt: MiniFloat) -> list[float]:
    """Non-negative numbers by code, from the definition of a float; without infinity and NaN."""
    bias = 2 ** (fmt.exponent - 1) - 1 if fmt.bias is None else fmt.bias
    numbers = []
    for field in range(2**fmt.exponent):
        for fraction in range(2**fmt.mantissa):
            whole = fraction / 2**fmt.mantissa + (field > 0)
            numbers.append(whole * 2.0 ** (max(field, 1) - bias))
    lost = {"ieee": 2**fmt.mantissa, "nan": 1, "none": 0}[fmt.specials]
    return numbers[: len(numbers) - lost]


def oracle(fmt: MiniFloat, x: torch.Tensor) -> np.ndarray:
    """The nearest of all numbers, ties to the even code, beyond the largest the largest; float64 is exact here."""
    grid = np.array(meanings(fmt))
    size = np.abs(x.double().numpy()).clip(max=grid[-1])
    upper = np.searchsorted(grid, size).clip(max=len(grid) - 1)
    lower = np.where(grid[upper] == size, upper, upper - 1)
    below, above = size - grid[lower], grid[upper] - size
    code = np.where((below < above) | ((below == above) & (lower % 2 == 0)), lower, upper)
    return np.copysign(grid[code], x.double().numpy())


@pytest.mark.parametrize("name", OCP)
def test_limits_are_those_of_the_standard(name):
    largest, normal, subnormal = OCP[name]
    fmt = format_of(name)
    assert fmt.largest == largest
    x = torch.tensor([largest, normal, subnormal, 1e30, -1e30, subnormal / 2, 1.5 * subnormal])
    assert fmt.quantize(x).tolist() == [largest, normal, subnormal, largest, -largest, 0.0, 2 * subnormal]


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_every_bfloat16_equals_the_oracle(fmt):
    x = every_bfloat16()
    assert np.array_equal(fmt.quantize(x).double().numpy(), oracle(fmt, x))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_random_floats_near_the_grid_equal_the_oracle(fmt):
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor(meanings(fmt), dtype=torch.float64)
    pick = grid[torch.randint(0, len(grid) - 1, (4000,), generator=generator)]
    step = pick * 2.0 ** (-fmt.mantissa - 1)
    x = torch.cat([pick, pick + step, pick + step * (1 + 2.0**-12), pick + step * (1 - 2.0**-12)]).float()
    x = torch.cat([x, -x, random_bits(4000, generator)])
    x = x[x.isfinite()]
    quantized = fmt.quantize(x)
    assert np.array_equal(quantized.double().numpy(), oracle(fmt, x))
    assert torch.equal(fmt.quantize(quantized), quantized)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_codes_are_the_bytes_of_torch(name, dtype):
    fmt = format_of(name)
    x = every_bfloat16()
    x = x[(x.abs() <= fmt.largest) & ~((x == 0) | (fmt.quantize(x) == 0))]  # torch has a minus zero and no saturation
    assert torch.equal(fmt.pack(x).codes, x.to(dtype).view(torch.uint8))
    every = torch.arange(256, dtype=torch.uint8)
    decoded = Packed(fmt, (256,), every, torch.empty(0, dtype=torch.int8)).unpack()
    assert torch.equal(decoded.nan_to_num(12345.0), every.view(dtype).float().nan_to_num(12345.0))


@pytest.mark.parametrize(("fmt", "dtype"), [(MiniFloat(8, 7), torch.bfloat16), (MiniFloat(5, 10), torch.float16)])
def test_the_types_of_the_machine_are_special_cases(fmt, dtype):
    x = random_bits(20_000, torch.Generator().manual_seed(1), spread=60)
    x = x[x.abs() < torch.finfo(dtype).max]
    assert torch.equal(fmt.quantize(x), x.to(dtype).float())
    assert torch.equal(fmt.pack(x[x != 0]).unpack(), x[x != 0].to(dtype).float())


def test_codes_of_fp4_are_those_of_the_standard():
    x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5, -6.0, -0.0])
    assert codes_of(format_of("fp4_e2m1"), x) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 0]


def test_every_code_unpacks_to_what_gfloat_says():
    gfloat, infos = pytest.importorskip("gfloat"), pytest.importorskip("gfloat.formats")
    names = {
        "fp8_e4m3": infos.format_info_ocp_e4m3,
        "fp8_e5m2": infos.format_info_ocp_e5m2,
        "fp6_e3m2": infos.format_info_ocp_e3m2,
        "fp6_e2m3": infos.format_info_ocp_e2m3,
        "fp4_e2m1": infos.format_info_ocp_e2m1,
    }
    for name, info in names.items():
        fmt, bits = format_of(name), info.k
        number = sum(code << (bits * code) for code in range(2**bits))
        codes = torch.tensor(list(number.to_bytes(bits * 2**bits // 8, "little")), dtype=torch.uint8)
        unpacked = Packed(fmt, (2**bits,), codes, torch.empty(0, dtype=torch.int8)).unpack()
        want = torch.tensor([gfloat.decode_float(info, code).fval for code in range(2**bits)])
        assert torch.equal(unpacked.nan_to_num(12345.0), want.nan_to_num(12345.0))


def test_rounding_is_that_of_gfloat():
    gfloat, infos = pytest.importorskip("gfloat"), pytest.importorskip("gfloat.formats")
    info, fmt = infos.format_info_ocp_e3m2, format_of("fp6_e3m2")
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 8
    want = [gfloat.round_float(info, value, gfloat.RoundMode.TiesToEven, True) for value in x.double().tolist()]
    assert fmt.quantize(x).tolist() == want


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_are_on_the_grid_and_finite_in_their_dtype(fmt, dtype):
    most = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    x = torch.cat([torch.tensor([most, -most]), torch.randn(200, generator=torch.Generator().manual_seed(2))]).to(dtype)
    quantized = fmt.quantize(x)
    assert quantized.dtype == dtype
    assert quantized.isfinite().all()
    assert torch.equal(fmt.quantize(quantized.float()), quantized.float())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((0, 3), "exponent is 0"),
        ((9, 3), "exponent is 9"),
        ((8, 8), "mantissa is 8"),
        ((4, 11), "mantissa is 11"),
        ((4, 3, 200), "bias is 200"),
        ((4, 3, -125), "use a larger bias"),
        ((8, 7, None, "none"), "use a larger bias"),
        ((8, 0), "mantissa is 0"),
        ((1, 1, -127), "use a larger bias or more bits"),
    ],
)
def test_floats_which_float32_cannot_hold_are_refused(arguments, reason):
    with pytest.raises(FormatError, match=reason):
        MiniFloat(*arguments)


def test_repr():
    assert repr(MiniFloat(4, 3, specials="nan")) == "MiniFloat(4, 3, specials='nan')"
    assert MiniFloat(4, 3, bias=7) == MiniFloat(4, 3)
    assert repr(MiniFloat(5, 2, bias=-3)) == "MiniFloat(5, 2, bias=-3)"

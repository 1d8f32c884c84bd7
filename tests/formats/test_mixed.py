import pytest
import torch

from weightbank.errors import FormatError
from weightbank.formats import (
    BlockFloatingPoint,
    ByDimensions,
    FixedPoint,
    Microscaling,
    MiniFloat,
    Mixed,
    Native,
    Packed,
    format_of,
    key,
)

PLAIN = (
    BlockFloatingPoint(3, block=ByDimensions()),
    Microscaling("mxfp4_e2m1"),
    FixedPoint(7, 4),
    Native("bfloat16"),
    MiniFloat(4, 3, specials="nan"),
    BlockFloatingPoint(12, block=ByDimensions()),
)
ROWS = "0312450135210"


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(13, 70), (13, 3, 5, 2), (13,), (13, 0), (13, 1)])
def test_rows_are_rounded_like_rows_alone(shape: tuple[int, ...]) -> None:
    x, mixed = tensor(*shape), Mixed(PLAIN, ROWS)
    rounded = mixed.quantize(x)
    for number, format in enumerate(PLAIN):
        rows = [row for row, digit in enumerate(ROWS) if int(digit) == number]
        assert torch.equal(rounded[rows], format.quantize(x[rows]))
        if len(shape) > 1:  # blocks lie within rows
            assert all(torch.equal(rounded[row], format.quantize(x[row : row + 1])[0]) for row in rows)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("shape", [(13, 70), (13, 3, 5, 2), (13,), (13, 0)])
def test_packed_bytes_hold_the_same_values(shape: tuple[int, ...], rounding: str) -> None:
    x, mixed, word = tensor(*shape), Mixed(PLAIN, ROWS), key(1, "w", 2)
    packed = mixed.pack(x, rounding=rounding, key=word)
    assert torch.equal(packed.unpack(), mixed.quantize(x, rounding=rounding, key=word))
    parts = [
        format.pack(x[[row for row, digit in enumerate(ROWS) if int(digit) == n]]) for n, format in enumerate(PLAIN)
    ]
    assert packed.nbytes == sum(part.nbytes for part in parts)
    out = torch.empty(shape, dtype=torch.float64)
    assert torch.equal(packed.unpack(out).float(), packed.unpack())


def test_quantizing_again_changes_nothing_and_out_may_be_the_tensor() -> None:
    x, mixed = tensor(13, 33), Mixed(PLAIN, ROWS)
    once = mixed.quantize(x)
    assert torch.equal(mixed.quantize(once), once)
    assert mixed.quantize(x, out=x) is x
    assert torch.equal(x, once)


def test_rounding_at_random_is_right_on_the_average() -> None:
    x, mixed = tensor(13, 8), Mixed((FixedPoint(6, 2), FixedPoint(8, 4)), "0101010101010")
    rounded = torch.stack([mixed.quantize(x, rounding="stochastic", key=key(0, "w", n)) for n in range(4_000)])
    error = rounded.double().mean(0) - x.double()
    stderr = rounded.double().std(0) / 4_000**0.5
    assert bool((error.abs() <= 5 * stderr + 2**-24).all())


def test_repr_rebuilds_it() -> None:
    for mixed in (Mixed(PLAIN, ROWS * 500), Mixed(PLAIN[:1], "000")):
        assert format_of(repr(mixed)) == mixed
        assert hash(format_of(repr(mixed))) == hash(mixed)


def test_bits_are_the_mean_of_the_rows() -> None:
    assert Mixed((FixedPoint(4, 2), Native("float32")), "0010").bits_per_weight == (3 * 4 + 32) / 4


@pytest.mark.parametrize(
    "text",
    [
        "Mixed((FixedPoint(4, 2)), '00')x",
        "Mixed((), '00')",
        "Mixed((FixedPoint(4, 2),), '01')",
        "Mixed((Mixed((FixedPoint(4, 2),), '0'),), '0')",
        "Mixed((__import__('os').getcwd(),), '0')",
        "Mixed((1,), '0')",
        "Mixed((FixedPoint(4, 2)], [1), '0')",
        "Mixed((" + "(" * 3000 + "), '0')",
    ],
)
def test_texts_that_are_no_mix_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        format_of(text)


def test_what_does_not_fit_is_refused() -> None:
    mixed = Mixed(PLAIN, ROWS)
    with pytest.raises(FormatError, match="13 rows"):
        mixed.quantize(tensor(12, 4))
    with pytest.raises(FormatError, match="13 rows"):
        mixed.pack(torch.tensor(1.0))
    packed = mixed.pack(tensor(13, 4))
    with pytest.raises(FormatError, match="bytes"):
        Packed(mixed, packed.shape, packed.codes[:-1], packed.scales).unpack()
    assert mixed.columns == 0
    with pytest.raises(FormatError, match="no layout"):
        mixed.row_bytes(10)

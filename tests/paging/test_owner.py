import pytest
import torch

from weightbank.errors import CapacityError, FormatError, NonFiniteError
from weightbank.formats import BlockFloatingPoint, Native, format_of
from weightbank.paging.owner import Owner, positions


@pytest.mark.parametrize(
    ("capacity", "format", "count"),
    [
        ("280 kB", "fp32", 70_000),
        ("280 kB", "bf16", 140_000),
        ("280 kB", "bfp8", 280_000 // 65 * 64),  # 64 codes and an exponent: 65 bytes
        ("280 kB", "bfp4", 280_000 // 17 * 32),
        (70_000, "bfp8", 70_000),
        ("4 B", "fp32", 1),
    ],
)
def test_a_capacity_in_bytes_is_what_the_owner_takes(capacity: str | int, format: str, count: int) -> None:
    chosen = format_of(format)
    assert positions(capacity, chosen) == count
    if isinstance(capacity, str):
        assert Owner.of(torch.zeros(count), chosen).nbytes <= int(float(capacity.split()[0]) * 1000) or count == 1


@pytest.mark.parametrize(
    ("capacity", "error", "said"),
    [
        ("3 B", CapacityError, "makes 0 positions"),
        (0, CapacityError, "0 positions"),
        (2**41, CapacityError, "positions"),
        ("many", FormatError, "not a size"),
        (1.5, FormatError, "280 kB"),
        (True, FormatError, "280 kB"),
    ],
)
def test_other_capacities_are_refused(capacity: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        positions.__wrapped__(capacity, Native("float32"))  # type: ignore[attr-defined]


def test_a_float32_owner_is_the_vector_itself() -> None:
    values = torch.arange(10.0)
    owner = Owner.of(values, Native("float32"))
    assert owner.values().data_ptr() == values.data_ptr() == owner.raw.data_ptr()
    assert owner.nbytes == 40


@pytest.mark.parametrize("format", ["bf16", "bfp8", "bfp4"])
def test_an_owner_holds_what_its_format_rounds_to(format: str) -> None:
    values = torch.randn(1_000, generator=torch.Generator().manual_seed(0))
    chosen = format_of(format)
    owner = Owner.of(values, chosen)
    assert torch.equal(owner.values(), chosen.quantize(values))
    assert owner.nbytes == chosen.row_bytes(1_000)


@pytest.mark.parametrize("format", ["fp32", "bf16", "bfp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_owner_is_made_of_numbers_that_are_not_finite(format: str, bad: float) -> None:
    values = torch.zeros(100)
    values[7] = bad
    with pytest.raises(NonFiniteError):
        Owner.of(values, format_of(format))


def test_a_format_without_rows_cannot_be_a_memory() -> None:
    with pytest.raises(FormatError):
        positions(100, BlockFloatingPoint(7))

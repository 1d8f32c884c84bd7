import pytest

from weightbank.errors import FormatError
from weightbank.sizes import parse_bytes, readable


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("4096", 4096), ("1kB", 1000), ("2.5 GB", 2_500_000_000), ("1e3 MiB", 1000 << 20)]
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 GB more", "1XB", "nan"])
def test_another_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(FormatError, match="write it as 100GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (999_949, "1.0 MB"), (1_000_000, "1.0 MB"), (99_949, "99.9 kB")]
)
def test_three_digits_and_a_unit(count: int, text: str) -> None:
    assert readable(count) == text

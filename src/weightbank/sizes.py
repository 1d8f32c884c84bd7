"""Byte counts and times as people write and read them: decimal units, 1 GB = 10⁹ bytes."""

import re

from weightbank.errors import FormatError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_TEXT = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def readable(count: float) -> str:
    """A byte count with three digits and its unit.

    >>> readable(503_500_000_000), readable(4096), readable(12)
    ('504 GB', '4.1 kB', '12 B')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    power = 1
    while abs(count) / 1000**power >= 999.5 and power < 5:
        power += 1
    scaled, unit = count / 1000**power, ("kB", "MB", "GB", "TB", "PB")[power - 1]
    return f"{scaled:.0f} {unit}" if abs(scaled) >= 99.95 else f"{scaled:.1f} {unit}"


def duration(seconds: float) -> str:
    """A time with the unit that suits it.

    >>> duration(0.25), duration(90), duration(1_049_146.7)
    ('0.2 s', '90.0 s', '12.1 days')
    """
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def parse_bytes(text: str) -> int:
    """The byte count meant by a text such as "100GB", "1.5 TB", "64MiB" or "4096"; `FormatError` for another text.

    >>> parse_bytes("100GB"), parse_bytes("64 MiB"), parse_bytes("1_000")
    (100000000000, 67108864, 1000)
    """
    found = _TEXT.fullmatch(text)
    if found is None or found[2].upper() not in UNITS:
        raise FormatError(f"{text!r} is not a size; write it as 100GB, 1.5TB, 64MiB or a number of bytes")
    return round(float(found[1].replace("_", "").replace(",", "")) * UNITS[found[2].upper()])

"""A noisy memory, and the loop that programs it, from what the command line says of them."""

from dataclasses import fields
from typing import Any

from weightbank.cim import FITS, Device, Drift, Table, WriteVerify
from weightbank.errors import DataError

FURTHER = (
    "quantized, pairs, scale=channel, analog=everything, read_noise=0.1, stuck_low=0.01, stuck_high=0.01, "
    "drift=SECONDS, drift_exponent=0.05 (or pcm_aihwkit), drift_spread=0.02, drift_compensated"
)
_FLAGS = ("quantized", "pairs", "drift_compensated")
_TEXTS = ("scale", "analog")
_NUMBERS = ("read_noise", "stuck_low", "stuck_high", "drift", "drift_exponent", "drift_spread")


def device_of(sigma: str, verified_sigma: str, weight_bits: int, cell_bits: int, further: str = "") -> Device:
    """The device of `--sigma`, `--verified-sigma`, `--weight-bits`, `--cell-bits` and `--memory`.

    Raises `DataError` for properties there are not, or values out of range.

    >>> device_of("0.3", "0.03", 8, 2, "pairs,read_noise=0.1").read_noise
    0.1
    """
    given = _properties(further)
    drift = {name.removeprefix("drift_"): given.pop(name) for name in list(given) if name.startswith("drift")}
    if drift:
        if "drift" not in drift:
            raise DataError("drift without a time; say drift=SECONDS, such as drift=86400 for a day")
        given["drift"] = Drift(drift.pop("drift"), **drift)
    return Device(weight_bits, cell_bits, spread(sigma), spread(verified_sigma), **given)


def spread(text: str) -> Any:
    """A standard deviation: a number in level steps, a published fit by name, or a CSV file of measurements."""
    if text in FITS:
        return text
    if text.endswith(".csv"):
        return Table.read(text)
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"'{text}' is no standard deviation; wanted a number in level steps, a published fit ({', '.join(FITS)}) "
            "or a .csv file of measurements with columns target and actual"
        ) from None


def process_of(tolerance: float | None, pulse: str) -> WriteVerify | None:
    """The simulated loop of `--tolerance` and `--pulse`; None without a tolerance."""
    if tolerance is None:
        return None
    return WriteVerify(pulse="incremental" if pulse == "incremental" else "redraw", tolerance=tolerance)


def described(device: Device) -> dict[str, Any]:
    """A device as plain values, what is at its default left out but for the first four."""
    plain, usual = device.describe(), Device().describe()
    first = [field.name for field in fields(device)][:4]
    return {name: value for name, value in plain.items() if name in first or value != usual[name]}


def _properties(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if name in _FLAGS and not equals:
            found[name] = True
        elif (name in _TEXTS and value) or part == "drift_exponent=pcm_aihwkit":
            found[name] = value
        elif name in _NUMBERS and value:
            try:
                found[name] = float(value)
            except ValueError:
                raise DataError(f"--memory {part}: '{value}' is no number") from None
        else:
            raise DataError(f"--memory {part}: not a property of a memory; there are: {FURTHER}")
    return found

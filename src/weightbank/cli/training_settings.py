"""The settings of a low-precision training run, kept as `train.json`, and the precision they mean."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from weightbank.errors import CorruptError, PrecisionError, StoreError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Format, format_of
from weightbank.formats.blocks import Block
from weightbank.lowprecision import Precision
from weightbank.store.media import Directory

RUN_FILE = "train.json"
_KIND, _LIMIT = "weightbank training 1", 1 << 16


@dataclass(frozen=True)
class Settings:
    """What `weightbank train` was asked for; plain numbers and text only."""

    model: str
    data: str
    precision: str
    bits_weight: int | None
    bits_grad: int | None
    bits_momentum: int | None
    bits_activation: int | None
    bits_error: int | None
    bits_accumulator: int | None
    block: str
    rounding: str
    order: str
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    average_from: int
    average_learning_rate: float
    average_every: int
    average_in: str
    schedule: str
    augment: bool
    normalise: bool
    seed: int
    pack: str | None
    device: str

    def save(self, directory: Path) -> None:
        """Write `train.json` in one step that survives a power loss."""
        document = json.dumps({"kind": _KIND, **asdict(self)}, indent=1)
        Directory(directory).replace(RUN_FILE, document.encode())

    @classmethod
    def load(cls, directory: Path) -> "Settings":
        """Read `train.json`; `StoreError` where there is none, `CorruptError` where it is not one of ours."""
        file = directory / RUN_FILE
        if not file.is_file():
            raise StoreError(f"{directory}: no training here (there is no {RUN_FILE}); `weightbank train` makes one")
        try:
            found = json.loads(Directory(directory).read(RUN_FILE, _LIMIT))
            if not isinstance(found, dict) or found.pop("kind", None) != _KIND:
                raise CorruptError(f"{file}: not the settings of a training run")
            return cls(**{field.name: _value(found, field.name, field.type) for field in fields(cls)})
        except (ValueError, RecursionError) as error:
            raise CorruptError(f"{file}: cannot be read: {error}") from error


def precision_of(settings: Settings) -> Precision:
    """The formats asked for; `PrecisionError` or `FormatError` for settings that make no precision."""
    name = settings.precision
    whole: Format | None
    small: Format | None
    if name.startswith("swalp") and name[5:].isdigit():
        whole = BlockFloatingPoint(int(name[5:]))
        small = BlockFloatingPoint(int(name[5:]), block=_block(settings.block))
    else:
        small = whole = None if name == "fp32" else format_of(name)

    def chosen(bits: int | None, default: Format | None, block: Block) -> Format | None:
        if bits is None:
            return default
        return BlockFloatingPoint(bits, block=block) if bits > 0 else None

    block = _block(settings.block)
    gradients = chosen(settings.bits_grad, small, block)
    published = settings.order == "published" and settings.bits_momentum is None
    order: Any = settings.order
    rounding: Any = settings.rounding
    return Precision(
        weights=chosen(settings.bits_weight, small, block),
        gradients=gradients,
        momentum=gradients if published else chosen(settings.bits_momentum, small, block),
        accumulator=chosen(
            settings.bits_accumulator, chosen(settings.bits_weight, small, block) if name != "fp32" else None, block
        ),
        activations=chosen(settings.bits_activation, whole, None),
        errors=chosen(settings.bits_error, whole, None),
        rounding=rounding,
        order=order,
        seed=settings.seed,
    )


def _block(name: str) -> Block:
    named: dict[str, Block] = {"small": ByDimensions(), "conv": ByDimensions(2), "big": None}
    if name in named:
        return named[name]
    if not name.isdigit() or int(name) < 1:
        raise PrecisionError(f"--block {name}: wanted small, conv, big, or a number of weights")
    return int(name)


def _value(found: dict[str, Any], name: str, kind: Any) -> Any:
    """The value of one setting, of the right type."""
    if name not in found:
        raise CorruptError(f"{RUN_FILE}: '{name}' is missing")
    value = float(found[name]) if kind is float and type(found[name]) is int else found[name]
    if not isinstance(value, kind) or (type(value) is bool) != (kind is bool):
        raise CorruptError(f"{RUN_FILE}: {name}={value!r}; wanted {getattr(kind, '__name__', kind)}")
    return value

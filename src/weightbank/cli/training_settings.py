"""The settings of a low-precision training run, kept as `train.json`, and the precision they mean."""

from dataclasses import dataclass
from typing import Any, ClassVar

from weightbank.cli.kept import Kept
from weightbank.errors import PrecisionError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Format, format_of
from weightbank.formats.blocks import Block
from weightbank.lowprecision import Precision

RUN_FILE = "train.json"


@dataclass(frozen=True)
class Settings(Kept):
    """What `weightbank train` was asked for; plain numbers and text only."""

    FILE: ClassVar = RUN_FILE
    KIND: ClassVar = "weightbank training 1"
    WHAT: ClassVar = "training"
    COMMAND: ClassVar = "train"

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

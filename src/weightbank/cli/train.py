"""`weightbank train`: train in low precision, average the iterates, and compare both like for like."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from weightbank.cli.console import Json

EXAMPLES = (
    "Examples:\n\nweightbank train --model mlp --data digits --epochs 4 --average-from 2 --out digits-8bit\n\n"
    "weightbank train --resume --out digits-8bit\n\n"
    "weightbank train --model mlp --data digits --epochs 3 --precision swalp6 --bits-accumulator 16 --out digits-6bit"
)
BITS_HELP = "Bits of {}; 0 is full precision; by default those of --precision."


class Order(StrEnum):
    """Of the roundings in one step."""

    algorithm2 = "algorithm2"
    published = "published"


class Rounding(StrEnum):
    """How numbers come onto the grid."""

    stochastic = "stochastic"
    nearest = "nearest"


class Schedule(StrEnum):
    """How the learning rate goes."""

    published = "published"
    constant = "constant"


def _bits(what: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, min=-1, max=16, help=BITS_HELP.format(what))
    return option


def train(
    model: Annotated[
        str,
        typer.Option(
            help="mlp, small_cnn (both fit any data), one such as vgg16_cifar10, or FILE:FUNCTION of your own (returns "
            "a model or a weightbank.Task)."
        ),
    ] = "mlp",
    data: Annotated[str, typer.Option(help="digits, mnist:FOLDER, idx:FOLDER, parquet:FOLDER or hub:NAME.")] = "digits",
    out: Annotated[Path, typer.Option(help="The directory of this run: settings, checkpoint, packed weights.")] = (
        Path("trained")
    ),
    precision: Annotated[
        str, typer.Option(help="swalp8 (block floating point of so many bits everywhere), fp32, or a format by name.")
    ] = "swalp8",
    bits_weight: Annotated[int | None, _bits("the weights", "--bits-weight", "--wl-weight")] = None,
    bits_grad: Annotated[int | None, _bits("the gradients", "--bits-grad", "--wl-grad")] = None,
    bits_momentum: Annotated[int | None, _bits("the momentum", "--bits-momentum", "--wl-momentum")] = None,
    bits_activation: Annotated[int | None, _bits("the activations", "--bits-activation", "--wl-activate")] = None,
    bits_error: Annotated[int | None, _bits("the errors", "--bits-error", "--wl-error")] = None,
    bits_accumulator: Annotated[int | None, _bits("the accumulator", "--bits-accumulator", "--wl-acc")] = None,
    block: Annotated[
        str,
        typer.Option(
            help="Which weights share an exponent: small (output channels), conv (those of convolutions only), "
            "big (a tensor), or so many along the last axis."
        ),
    ] = "small",
    rounding: Annotated[Rounding, typer.Option("--rounding", "--quant-type", help="Onto the grid.")] = (
        Rounding.stochastic
    ),
    order: Annotated[
        Order, typer.Option(help="Of the roundings in a step: the paper's, or the authors' program's.")
    ] = (Order.algorithm2),
    epochs: Annotated[int, typer.Option("-e", "--epochs", min=1, help="In all.")] = 20,
    batch_size: Annotated[
        int, typer.Option("-b", "--batch-size", "--batch_size", min=1, help="Examples a step.")
    ] = 128,
    learning_rate: Annotated[float, typer.Option("--lr", "--lr-init", "--lr_init", help="At the start.")] = 0.05,
    momentum: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option("--wd", "--weight-decay", min=0.0, help="Of SGD.")] = 5e-4,
    average_from: Annotated[
        int | None,
        typer.Option(
            "--average-from",
            "--swa-start",
            "--swa_start",
            min=1,
            help="Average after each epoch beyond so many; by default 2/3.",
        ),
    ] = None,
    average_every: Annotated[
        int, typer.Option(min=0, help="Average every so many steps from there on; 0 is after each epoch.")
    ] = 0,
    average_in: Annotated[
        str, typer.Option(help="Keep the average in fp32, as exact sums (exact), or in a format such as bfp8.")
    ] = "fp32",
    average_lr: Annotated[
        float | None,
        typer.Option(
            "--average-lr", "--swa-lr", "--swa_lr", help="The rate from there on; by default a fifth of --lr."
        ),
    ] = None,
    schedule: Annotated[
        Schedule, typer.Option(help="Down to a hundredth and up again when averaging starts, or constant before.")
    ] = Schedule.published,
    augment: Annotated[bool, typer.Option("--augment", help="Crop and mirror the images at random.")] = False,
    normalise: Annotated[
        bool, typer.Option("--normalise/--no-normalise", help="Shift and scale each channel by its mean and deviation.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the first weights, the order of the data, and all rounding.")] = 0,
    pack: Annotated[
        str | None, typer.Option(help="The format of the saved average; by default that of the weights.")
    ] = None,
    device: Annotated[str, typer.Option(help="A device by its torch name.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its own settings.")
    ] = False,
    json: Json = False,
) -> None:
    """Train with weights, gradients, momentum, activations and errors in few bits (SWALP), and average the iterates.

    The table compares the last iterate with the average like for like: both with quantized activations, both with
    activations in full precision; and the average as it is packed into a file. A run that was stopped goes on with
    --resume, and ends with the same bits.
    """
    from weightbank.cli.training_runs import run_again, run_new
    from weightbank.cli.training_settings import Settings

    if resume:
        run_again(out, json=json)
        return
    kind, _, folder = data.partition(":")
    start = average_from if average_from is not None else max(1, 2 * epochs // 3)
    settings = Settings(
        model=model,
        data=f"{kind}:{Path(folder).absolute()}" if folder and kind != "hub" else data,
        precision=precision,
        bits_weight=bits_weight,
        bits_grad=bits_grad,
        bits_momentum=bits_momentum,
        bits_activation=bits_activation,
        bits_error=bits_error,
        bits_accumulator=bits_accumulator,
        block=block,
        rounding=rounding.value,
        order=order.value,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        average_from=start,
        average_learning_rate=learning_rate / 5 if average_lr is None else average_lr,
        average_every=average_every,
        average_in=average_in,
        schedule=schedule.value,
        augment=augment,
        normalise=normalise,
        seed=seed,
        pack=pack,
        device=device,
    )
    run_new(settings, out, json=json)

"""`weightbank inspect`: what each job would need in bytes and time, before any work."""

from typing import Annotated

import typer

from weightbank.cli.console import Json

EXAMPLES = (
    "Examples:\n\nweightbank inspect resnet18_cifar10\n\nweightbank inspect mlp --data digits\n\n"
    "weightbank inspect digits.safetensors"
)


def inspect(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A model by name, FILE:FUNCTION of your own (returns a model or a weightbank.Task), a .safetensors "
            "file of any command, or the directory of a posterior.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="digits, mnist:FOLDER ...: then passes over a batch of it are timed."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("-b", "--batch-size", min=1, help="Examples to time. [32]")] = None,
    json: Json = False,
) -> None:
    """Say what each job would need, before any work: bytes of rows, cells and pulses, training state, positions, time.

    Of a file: what it is, who wrote it, its weights, formats and bytes, without reading its tensors.
    """
    from weightbank.cli.inspecting import show_inspection

    show_inspection(subject, data, batch_size, json=json)

"""`weightbank cim`: scores, sweeps and programming plans for networks on noisy devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightbank.cli.console import Commands, Json, note
from weightbank.cli.groups import grouped

if TYPE_CHECKING:
    from weightbank.cim import Device, WriteVerify
    from weightbank.cli.cim_network import Wanted

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Networks on noisy devices: which weights or cells deserve the exact, expensive write, and what it buys.",
)


class Pulse(StrEnum):
    """What a pulse does to a cell."""

    redraw = "redraw"
    incremental = "incremental"


NETWORK_HELP = (
    "mlp, small_cnn (both fit any data), another model of the zoo, FILE:FUNCTION of your own (returns a model or a "
    "weightbank.Task), or the .safetensors file of `cim curvature`."
)
Name = Annotated[str, typer.Argument(metavar="NETWORK", help=NETWORK_HELP)]
Data = Annotated[
    str | None, typer.Option(help="digits (if none is named), mnist:FOLDER, parquet:FOLDER and so on.", metavar="SPEC")
]
Pretrained = Annotated[
    Path | None, typer.Option(help="Weights: a file of `cim curvature`, .safetensors, or a published state_dict.")
]
Epochs = Annotated[int | None, typer.Option("-e", "--epochs", min=0, help="Of training, if no weights are given. [20]")]
Rate = Annotated[float, typer.Option("--lr", help="Of Adam.")]
Seed = Annotated[int, typer.Option(help="Of first weights, order of the data, random probes and chips.")]
On = Annotated[str, typer.Option("--device", help="Where the network runs, by its torch name.")]
Sigma = Annotated[str, typer.Option(help="Error of a cell written once: level steps, pcm_joshi, or measurements.csv.")]
Verified = Annotated[str, typer.Option(help="Error of a verified cell, in the same ways.")]
Bits = Annotated[int, typer.Option(min=1, max=24, help="Bits of a weight.")]
CellBits = Annotated[int, typer.Option(min=1, max=24, help="Bits of a cell.")]
Memory = Annotated[
    str,
    typer.Option(help="More about it: quantized, pairs, scale=channel, read_noise=0.1, stuck_low=0.01, drift=86400..."),
]
Tolerance = Annotated[
    float | None, typer.Option(help="Simulate a loop that stops there, in level steps, instead of two widths.")
]
PulseOption = Annotated[Pulse, typer.Option(help="Of the simulated loop.")]
Which = Annotated[
    str, typer.Option("--scores", help="ggn_sampled, ggn, backprop, fisher, fisher_empirical, hutchinson.")
]
Chips = Annotated[int, typer.Option(min=1, help="Noisy chips, at most.")]
Stderr = Annotated[float | None, typer.Option(help="Stop earlier at this standard error of the mean accuracy.")]


@dataclass(frozen=True)
class Made:
    """How a network is made: its data, and weights or training."""

    data: Data = None
    pretrained: Pretrained = None
    epochs: Epochs = None
    lr: Rate = 3e-3
    seed: Seed = 0
    device: On = "cpu"

    def wanted(self, network: str) -> "Wanted":
        """The network of that name, so made."""
        from weightbank.cli.cim_network import Wanted

        return Wanted(network, self.data, self.pretrained, self.epochs, self.lr, self.seed, self.device)


@dataclass(frozen=True)
class MemoryOptions:
    """The memory it is written to."""

    sigma: Sigma = "0.1"
    verified_sigma: Verified = "0.03"
    weight_bits: Bits = 8
    cell_bits: CellBits = 1
    memory: Memory = ""

    def device(self) -> "Device":
        """As the library knows it."""
        from weightbank.cli.cim_device import device_of

        return device_of(self.sigma, self.verified_sigma, self.weight_bits, self.cell_bits, self.memory)


@dataclass(frozen=True)
class Loop:
    """How write-verify is simulated, if it is."""

    tolerance: Tolerance = None
    pulse: PulseOption = Pulse.redraw

    def process(self) -> "WriteVerify | None":
        """The simulated loop, or None for two widths of error."""
        from weightbank.cli.cim_device import process_of

        return process_of(self.tolerance, self.pulse)


@contextmanager
def _resumable(hint: str) -> Iterator[None]:
    """On Ctrl-C say how to go on, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"stopped; {hint}")
        raise typer.Exit(130) from None


@app.command(
    "curvature",
    epilog="Examples:\n\nweightbank cim curvature mlp --data digits -o digits-net.safetensors\n\n"
    "weightbank cim curvature digits-net.safetensors --which backprop --which ggn -o digits-net.safetensors",
)
@grouped
def curvature_command(
    *,
    network: Name = "mlp",
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")] = Path(
        "network.safetensors"
    ),
    which: Annotated[
        list[str] | None, typer.Option(help="ggn_sampled (default), ggn, backprop (published), ...; repeat it.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Training examples; by default as many as needed.")] = None,
    batch_size: Annotated[int | None, typer.Option("-b", "--batch-size", min=1, help="Examples at once.")] = None,
    made: Made,
    json: Json = False,
) -> None:
    """Say how much each weight matters: the diagonal of a curvature of the loss, kept with the network's weights.

    The other commands take the file instead of a network, so nothing is trained or computed twice.
    """
    from weightbank.cli.cim_scores import show_curvature

    with _resumable("nothing was kept"):
        show_curvature(
            made.wanted(network), which or ["ggn_sampled"], output, images=images, batch_size=batch_size, json=json
        )


@app.command("rank", epilog="Example:\n\nweightbank cim rank digits-net.safetensors --fraction 0.05 --sigma 0.3")
@grouped
def rank_command(
    *,
    network: Name = "mlp",
    fraction: Annotated[float, typer.Option(min=0.0, max=1.0, help="To verify, of weights or of cells.")] = 0.05,
    which: Which = "ggn_sampled",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the order of the weights, best first, there.")
    ] = None,
    memory: MemoryOptions,
    made: Made,
    json: Json = False,
) -> None:
    """Show, layer by layer, where the curvature is and which weights or cells a fraction of verifying would pick."""
    from weightbank.cli.cim_scores import show_rank

    show_rank(made.wanted(network), memory.device(), which, fraction, output, json=json)


@app.command(
    "sweep",
    epilog="Examples:\n\nweightbank cim sweep digits-net.safetensors --sigma 0.5 --budget 0.01 --budget 0.1 "
    "--chips 30 -o digits-sweep\n\n"
    "weightbank cim sweep mlp --sigma 0.5 --method cells --method random --stderr 0.01",
)
@grouped
def sweep_command(
    *,
    network: Name = "mlp",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A directory for sweep.json, sweep.csv and sweep.svg.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="random, magnitude, 'first derivative', published, weights, 'top cells', cells, graded, 'read first', "
            "compensate [all these], 'in situ' (retraining); repeat it."
        ),
    ] = None,
    retraining: Annotated[str, typer.Option(help="In situ: lr=0.003,momentum=0.0,chips=5,steps=1000 or some.")] = "",
    budget: Annotated[
        list[float] | None, typer.Option(min=0.0, max=1.0, help="Of the write cycles of verifying all; repeat it.")
    ] = None,
    which: Which = "ggn_sampled",
    chips: Chips = 300,
    stderr: Stderr = 0.002,
    memory: MemoryOptions,
    loop: Loop,
    made: Made,
    json: Json = False,
) -> None:
    """Measure accuracy against write cycles for every way of spending them, on the same chips, and draw it.

    With -o, a sweep that was stopped goes on when the same command is given again, and more methods, budgets or
    chips only add what is missing.
    """
    from weightbank.cli.cim_programs import show_sweep

    hint = "nothing was kept" if output is None else f"the same command goes on from {output}"
    options: dict[str, Any] = {"chips": chips, "stderr": stderr, "seed": made.seed, "json": json}
    options["retraining"] = retraining
    with _resumable(hint):
        show_sweep(made.wanted(network), memory.device(), loop.process(), method, budget, which, output, **options)


@app.command(
    "plan",
    epilog="Example:\n\nweightbank cim plan digits-net.safetensors --sigma 0.5 --policy cells --max-drop 0.02 "
    "-o digits-plan.safetensors",
)
@grouped
def plan_command(
    *,
    network: Name = "mlp",
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan's .safetensors file.")] = Path(
        "plan.safetensors"
    ),
    max_drop: Annotated[float, typer.Option(help="Of the mean accuracy over chips, absolute.")] = 0.005,
    policy: Annotated[
        str, typer.Option(help="weights (published), cells, graded, 'read first', 'top cells', compensate.")
    ] = "cells",
    which: Which = "ggn_sampled",
    step: Annotated[float, typer.Option(help="Resolution of the budget.")] = 0.001,
    confidence: Annotated[float, typer.Option(help="Of each decision.")] = 0.95,
    passes: Annotated[int, typer.Option(min=2, help="The most passes over the test data for one decision.")] = 16,
    memory: MemoryOptions,
    loop: Loop,
    made: Made,
    json: Json = False,
) -> None:
    """Find the fewest write cycles that keep the accuracy, and write down which cells get them (Algorithm 1 of SWIM).

    A search that was stopped goes on when the same command is given again. Exits with code 1 if even verifying
    everything is not enough.
    """
    from weightbank.cli.cim_programs import show_plan

    options: dict[str, Any] = {"max_drop": max_drop, "step": step, "confidence": confidence, "passes": passes}
    with _resumable(f"the same command goes on from {output}"):
        if not show_plan(
            made.wanted(network),
            memory.device(),
            loop.process(),
            policy,
            which,
            output,
            seed=made.seed,
            json=json,
            **options,
        ):
            raise typer.Exit(1)


@app.command(
    "evaluate",
    epilog="Example:\n\nweightbank cim evaluate digits-plan.safetensors digits-net.safetensors --chips 20",
)
@grouped
def evaluate_command(
    *,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The file of `cim plan`.")],
    network: Name,
    chips: Chips = 100,
    stderr: Stderr = None,
    made: Made,
    chips_seed: Annotated[int, typer.Option(help="Of the chips: others than those that the plan has seen.")] = 1,
    json: Json = False,
) -> None:
    """Program later chips by a plan, and see what each of them scores on all the test data."""
    from weightbank.cli.cim_programs import show_evaluation

    with _resumable("nothing was kept"):
        show_evaluation(plan, made.wanted(network), chips=chips, stderr=stderr, seed=chips_seed, json=json)


@app.command(
    "run",
    epilog="Examples:\n\n"
    "weightbank cim run --model QLeNet --train-epoch 6 --noise-epoch 5 --dev-var 0.3 --mask-p 0.1\n\n"
    "weightbank cim run --model MLP4 --method graded --train-epoch 9 --noise-epoch 5 --dev-var 0.3 --mask-p 0.01",
)
def run_command(
    model: Annotated[
        str, typer.Option(help="MLP3 MLP4 LeNet CIFAR Res18 TIN QLeNet QCIFAR QRes18 QDENSE QTIN QVGG; Q: quantized.")
    ] = "MLP4",
    method: Annotated[
        str,
        typer.Option(help="SM second saliency (SL) magnitude random; ours: weights, cells, graded, 'read first'..."),
    ] = "SM",
    data: Annotated[str, typer.Option(metavar="SPEC", help="Images, resized if need be: mnist:FOLDER...")] = "digits",
    train_epoch: Annotated[int, typer.Option("--train-epoch", "--train_epoch", min=0, help="Of training.")] = 20,
    noise_epoch: Annotated[int, typer.Option("--noise-epoch", "--noise_epoch", min=1, help="Noisy chips.")] = 100,
    train_var: Annotated[float, typer.Option("--train-var", "--train_var", min=0, help="Noise in training.")] = 0.0,
    dev_var: Annotated[
        float, typer.Option("--dev-var", "--dev_var", min=0, help="Error of a cell written once (standard deviation).")
    ] = 0.3,
    write_var: Annotated[
        float, typer.Option("--write-var", "--write_var", min=0, help="Error of a verified cell.")
    ] = 0.03,
    mask_p: Annotated[
        float, typer.Option("--mask-p", "--mask_p", min=0, max=1, help="Fraction that is verified.")
    ] = 0.01,
    alpha: Annotated[
        float | None,
        typer.Option(help="SM: of the curvature beside |w| (none: |w| settles ties); saliency: of |w|. [2]"),
    ] = None,
    div: Annotated[int, typer.Option(min=1, help="Batches of 128 / div for the second derivatives.")] = 1,
    pretrained: Annotated[
        str, typer.Option(metavar="PATH", help="A state_dict; False trains; True is MODEL_PATH/saved_B_HEADER.pt.")
    ] = "False",
    header: Annotated[str, typer.Option(help="For --pretrained True.")] = "1",
    model_path: Annotated[Path, typer.Option("--model-path", "--model_path", help="For --pretrained True.")] = Path(
        "pretrained"
    ),
    use_mask: Annotated[str, typer.Option("--use-mask", "--use_mask", help="False leaves out the method.")] = "True",
    verbose: Annotated[str, typer.Option(help="True tells the accuracy after each epoch.")] = "False",
    device: On = "cpu",
    images: Annotated[int | None, typer.Option(min=1, help="For the second derivatives; all if not given.")] = None,
    weight_bits: Bits = 8,
    cell_bits: CellBits = 1,
    stderr: Stderr = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Keep the network for other commands.")] = None,
    json: Json = False,
) -> None:
    """One published experiment of selective write-verify, by its own options, on any of its networks.

    Trains (or reads) the network, ranks its weights, verifies a fraction of them, and evaluates whole noisy chips of
    which nothing, everything, and that fraction is verified.
    """
    from weightbank.cli.cim_published import Options, show_run

    options = Options(
        model=model,
        method=method,
        train_epoch=train_epoch,
        noise_epoch=noise_epoch,
        train_var=train_var,
        dev_var=dev_var,
        write_var=write_var,
        mask_p=mask_p,
        alpha=alpha,
        div=div,
        use_mask=_flag(use_mask, "--use-mask"),
        data=data,
        pretrained=_weights(pretrained, model_path / f"saved_B_{header}.pt"),
        images=images,
        weight_bits=weight_bits,
        cell_bits=cell_bits,
        stderr=stderr,
        seed=seed,
        device=device,
        verbose=_flag(verbose, "--verbose"),
    )
    with _resumable("nothing was kept"):
        show_run(options, output, json=json)


def _weights(text: str, usual: Path) -> str | None:
    """The file that `--pretrained` means; None to train."""
    if text.lower() == "false":
        return None
    return str(usual) if text.lower() == "true" else text


def _flag(text: str, option: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise typer.BadParameter(f"{option} {text}: wanted True or False")
    return text.lower() == "true"

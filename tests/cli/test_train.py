import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from weightbank.cli.augment import CroppedFlipped, cropped_flipped, normalise
from weightbank.cli.train import EXAMPLES
from weightbank.cli.training_runs import prepare
from weightbank.cli.training_settings import Settings, precision_of
from weightbank.distributions.packed import PackedWeights
from weightbank.formats import BlockFloatingPoint, ByDimensions
from weightbank.store.arrays import load_arrays
from weightbank.task import TensorBatches

SMALL, WHOLE = BlockFloatingPoint(8, block=ByDimensions()), BlockFloatingPoint(8)
Run = Callable[..., Any]


@pytest.fixture
def run(cli: Run) -> Run:
    """Run `weightbank train ...` in an empty directory."""
    return partial(cli, "train")


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "model": "mlp", "data": "digits", "precision": "swalp8", "bits_weight": None, "bits_grad": None,
        "bits_momentum": None, "bits_activation": None, "bits_error": None, "bits_accumulator": None, "block": "small",
        "rounding": "stochastic", "order": "algorithm2", "epochs": 2, "batch_size": 128, "learning_rate": 0.05,
        "momentum": 0.9, "weight_decay": 5e-4, "average_from": 1, "average_learning_rate": 0.01,
        "average_every": 0, "average_in": "fp32",
        "schedule": "published", "augment": False, "normalise": True, "seed": 0, "pack": None, "device": "cpu",
    }  # fmt: skip
    return Settings(**{**plain, **changes})


@pytest.mark.slow
def test_every_example_runs_and_shows_the_table(run: Run) -> None:
    for line in EXAMPLES.splitlines():
        if line.startswith("weightbank train"):
            result = run(*shlex.split(line)[2:])
            assert result.exit_code == 0, result.stderr
            assert "last iterate" in result.stdout
            assert "Compare lines of equal activations" in result.stdout


def test_a_run_compares_like_for_like_and_leaves_packed_weights(run: Run, tmp_path: Path) -> None:
    result = run("--epochs", "3", "--average-from", "1", "--out", "r", "--json")
    found = json.loads(result.stdout)
    assert [(row["law"], row["activations"]) for row in found["laws"]] == [
        (law, how) for law in ("last iterate", "average of 2", "average in 8 bits") for how in ("quantized", "full")
    ]
    assert all(row["average"]["accuracy"]["mean"] > 0.8 for row in found["laws"])
    weights = found["weights"]
    assert [row["bytes"] for row in found["laws"]][1:5] == [
        found["laws"][0]["bytes"],
        *[4 * weights] * 2,
        found["laws"][0]["bytes"],
    ]
    for name in ("last", "average"):
        packed = PackedWeights.open(tmp_path / "r" / f"{name}.safetensors")
        assert packed.nbytes == found["laws"][0]["bytes"] < weights * 1.1
        assert torch.equal(pieces(packed), packed.mean())


@pytest.mark.parametrize(("kept", "least", "most"), [("fp32", 4, 4), ("exact", 2, 8.1), ("bfp8", 1, 1.2)])
def test_averages_are_taken_every_few_steps_and_kept_as_asked_for(
    run: Run, kept: str, least: float, most: float
) -> None:
    every = ("--average-every", "5", "--average-in", kept)
    found = json.loads(run("--epochs", "3", "--average-from", "1", *every, "--out", "r", "--json").stdout)
    batches = -(-1297 // found["settings"]["batch_size"])
    average = next(row for row in found["laws"] if row["law"].startswith("average of"))
    assert average["law"] == f"average of {2 * batches // 5}"
    assert least <= average["bytes"] / found["weights"] <= most
    assert average["average"]["accuracy"]["mean"] > 0.8


def pieces(packed: PackedWeights) -> torch.Tensor:
    return torch.cat([SMALL.quantize(part).flatten() for part in packed.layout.unravel(packed.mean()).values()])


def test_a_run_that_is_killed_ends_with_the_same_files_when_resumed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--epochs", "3", "--average-from", "1", "--json")
    assert run(*arguments, "--out", "whole").exit_code == 0
    from weightbank.cli import training_runs

    whole = training_runs.epochs

    def killed(*args: Any, **kwargs: Any) -> Any:
        for number in whole(*args, **kwargs):
            yield number
            if number == 1:
                raise RuntimeError("killed")

    monkeypatch.setattr(training_runs, "epochs", killed)
    with pytest.raises(RuntimeError):
        run(*arguments, "--out", "parts")
    monkeypatch.setattr(training_runs, "epochs", whole)
    assert run("--resume", "--out", "parts", "--json").exit_code == 0
    for name in ("last", "average"):
        one, other = (load_arrays(tmp_path / place / f"{name}.safetensors")[0] for place in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_fp32_has_no_quantized_lines(run: Run) -> None:
    result = run("--epochs", "2", "--average-from", "1", "--precision", "fp32", "--out", "r")
    assert "quantized" not in result.stdout.split("NLL")[1]
    assert "Compare lines" not in result.stdout


def test_mistakes_are_one_line(run: Run, tmp_path: Path) -> None:
    assert "no training here" in run("--resume", "--out", "none").stderr
    assert "'swalp99x' is not a number format" in run("--precision", "swalp99x").stderr
    assert "--block tiny: wanted small" in run("--block", "tiny").stderr
    assert not (tmp_path / "trained").exists()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "train.json").write_text('{"kind": "other"}')
    assert "not the settings" in run("--resume", "--out", "r").stderr
    assert "there is a run here already" in run("--out", "r").stderr


@pytest.mark.parametrize(
    "wrong",
    ["--pack nope", "--pack BlockFloatingPoint(8,block=Per(1))", "--average-in nope", "--average-lr 0", "--lr -1"],
)
def test_what_would_fail_after_the_last_epoch_is_refused_before_the_first_and_leaves_nothing(
    run: Run, tmp_path: Path, wrong: str
) -> None:
    result = run("--out", str(tmp_path / "r"), *wrong.split(" "))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert not (tmp_path / "r").exists()


def test_a_run_without_an_average_says_so(run: Run) -> None:
    assert "No average: the run ends before epoch 4" in run("--epochs", "1", "--average-from", "3").stdout


def test_bits_of_single_quantities_override_those_of_the_precision() -> None:
    plain = precision_of(settings())
    assert (plain.weights, plain.momentum, plain.accumulator, plain.activations) == (SMALL, SMALL, SMALL, WHOLE)
    changed = precision_of(settings(bits_weight=4, bits_error=0, bits_activation=6, bits_accumulator=-1))
    assert changed.weights == changed_block(4)
    assert changed.accumulator is None
    assert changed.errors is None
    assert changed.activations == BlockFloatingPoint(6)
    assert precision_of(settings(bits_weight=4)).accumulator == changed_block(4)
    assert precision_of(settings(order="published", bits_grad=6)).momentum == changed_block(6)
    assert precision_of(settings(block="big")).weights == WHOLE
    assert precision_of(settings(block="32")).weights == BlockFloatingPoint(8, block=32)
    only = precision_of(settings(precision="fp32", bits_activation=5))
    assert (only.weights, only.accumulator, only.activations) == (None, None, BlockFloatingPoint(5))


def changed_block(bits: int) -> BlockFloatingPoint:
    return BlockFloatingPoint(bits, block=ByDimensions())


def test_crops_hold_the_image_moved_and_mirrored() -> None:
    x = torch.arange(1.0, 2 * 3 * 5 * 4 * 100 + 1).view(200, 3, 5, 4)
    moved = cropped_flipped(x, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for image, big in zip(moved, padded, strict=True):
        crops = {(down, right): big[:, down : down + 5, right : right + 4] for down in range(5) for right in range(5)}
        matches = [(place, 0) for place, crop in crops.items() if torch.equal(image, crop)]
        matches += [(place, 1) for place, crop in crops.items() if torch.equal(image, crop.flip(2))]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 45  # of 50 equally likely: 200 draws leave out 0.9 on the average


def test_augmented_passes_repeat_with_the_generator_and_differ_from_each_other() -> None:
    x, y = torch.rand(64, 1, 8, 8), torch.arange(64)
    batches = CroppedFlipped(TensorBatches(x, y, 16, shuffle=True, generator=torch.Generator().manual_seed(3)))
    state = batches.generator.get_state()
    first, second = (torch.cat([b for b, _ in batches]) for _ in range(2))
    batches.generator.set_state(state)
    assert torch.equal(torch.cat([b for b, _ in batches]), first)
    assert not torch.equal(first, second)
    assert len(batches) == 4


def test_images_are_normalised_by_the_training_images() -> None:
    task = prepare(settings(normalise=True))
    assert isinstance(task.train, TensorBatches)
    assert abs(float(task.train.x.mean())) < 1e-5
    assert float(task.train.x.std()) == pytest.approx(1, abs=1e-4)
    bare = prepare(settings(normalise=False))
    assert isinstance(bare.train, TensorBatches)
    low = float(bare.train.x.min())
    assert low == 0.0
    normalise(bare)
    torch.testing.assert_close(bare.train.x, task.train.x)


def test_augment_is_asked_for() -> None:
    assert isinstance(prepare(settings(augment=True)).train, CroppedFlipped)

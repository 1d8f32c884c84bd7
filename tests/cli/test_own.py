"""Commands on a model, and on a whole task, that a user's own file makes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from weightbank.cli import own

CODE = """
import torch
import torch.nn.functional as F
from weightbank import Task
from weightbank.data import digits

def model():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )

def task():
    data = digits()
    return Task("mine", model(), F.cross_entropy, data.train, data.test, batch_size=200)

def endless():
    batch = tuple(part[:20] for part in digits().train)
    class Stream:
        def __iter__(self):
            yield batch
    return Task("mine", model(), F.cross_entropy, Stream(), digits().test)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "network_of_mine"
    (tmp_path / f"{name}.py").write_text(CODE)
    yield f"{name}.py"
    own.sys.modules.pop(name, None)


@pytest.mark.parametrize("function", ["model", "task"])
def test_a_posterior_of_it_is_recorded_and_looked_at_again(cli: Callable[..., Any], mine: str, function: str) -> None:
    run = cli(
        "posterior", "run", f"{mine}:{function}", "--path", "r", "-e", "2", "-b", "200", "--samples", "3", "--json"
    )
    assert run.exit_code == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["plan"]["weights"] == 4 * 9 + 4 + 8 + 1450
    assert document["plan"]["iterates"] == 2 * 7  # 1,297 examples in batches of 200
    again = cli("posterior", "evaluate", "r", "--samples", "3", "--json")
    last = [
        next(law for law in json.loads(found)["laws"] if law["role"] == "last") for found in (run.stdout, again.stdout)
    ]
    assert last[0]["accuracy"] == last[1]["accuracy"]
    cli("posterior", "export", "r", "-o", "law.safetensors")
    shown = cli(
        "posterior",
        "evaluate",
        "law.safetensors",
        "--model",
        f"{mine}:{function}",
        "--data",
        "digits",
        "--samples",
        "2",
    )
    assert shown.exit_code == 0, shown.stderr


@pytest.mark.parametrize("function", ["model", "task"])
def test_it_is_trained_in_few_bits(cli: Callable[..., Any], mine: str, function: str) -> None:
    run = cli("train", "--model", f"{mine}:{function}", "--epochs", "2", "--average-from", "1", "--out", "t", "--json")
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["weights"] == 1498
    assert (Path("t") / "average.safetensors").exists()


def test_what_does_not_go_with_a_task_of_its_own_is_said(cli: Callable[..., Any], mine: str) -> None:
    augmented = cli("train", "--model", f"{mine}:task", "--augment", "--out", "t")
    assert augmented.exit_code == 1
    assert "--augment is for the images of --data" in augmented.stderr
    endless = cli("posterior", "run", f"{mine}:endless", "--path", "r")
    assert endless.exit_code == 1
    assert "give its loader a length" in endless.stderr
    missing = cli("posterior", "run", f"{mine}:nothing", "--path", "r")
    assert missing.exit_code == 1
    assert "wanted FILE:FUNCTION" in missing.stderr
    assert not Path("r").exists()
    cli("posterior", "run", f"{mine}:task", "--path", "r", "-e", "1", "--samples", "0")
    foreign = cli("posterior", "evaluate", "r", "--ood", "photos")
    assert foreign.exit_code == 1
    assert "Task with data of its own" in foreign.stderr


def test_the_first_weights_follow_the_seed(cli: Callable[..., Any], mine: str) -> None:
    from weightbank.cli.runs import task_of

    first, second, other = (task_of(f"{mine}:model", "digits", seed=seed)[0].theta() for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

"""A training run that is killed again and again ends with the same bits as one that was left in peace."""

import errno
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from killing import Children, Tell
from weightbank.distributions import Moments, Window
from weightbank.errors import CapacityError, WeightbankError
from weightbank.layout import Entry, Layout
from weightbank.store import RowLog
from weightbank.store.arrays import load_arrays, save_arrays
from weightbank.store.slots import MomentSlots
from weightbank.store.state import load_state
from weightbank.task import Task
from weightbank.training import epochs

KIND = "weightbank checkpoint 2"


def warm() -> None:
    """Import and compile what a run needs, so that each child begins at once."""
    with tempfile.TemporaryDirectory() as where:
        train(lambda step: None, where, "bfp8", 8, 1e9)


def train(tell: Tell, where: str, format: str, window: int | None, seconds: float) -> None:
    """A child: train for four epochs, or go on with it, and tell each step; leave what came out in `result`."""
    torch.manual_seed(0)
    folder = Path(where)
    model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 5))
    x, y = torch.randn(200, 20), torch.randint(0, 5, (200,))
    task = Task("toy", model, F.cross_entropy, (x, y), (x, y), batch_size=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    keep = None if window is None else Window(window)
    moments = Moments(task.layout, rows=RowLog(folder / "rows", format=format), keep=keep)

    def take(theta: torch.Tensor, *, step: int) -> None:
        moments.update(theta, step=step)
        tell(step)

    for _ in epochs(
        task,
        optimizer,
        count=4,
        each_step=take,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7),
        checkpoint=folder / "checkpoint",
        checkpoint_seconds=seconds,
        stateful={"moments": moments},
    ):
        pass
    assert moments.rows is not None
    kept = range(moments.rows.first, moments.count)
    result = {
        "weights": task.theta(),
        "buffers": torch.cat([buffer.reshape(-1).float() for buffer in model.buffers()]),
        "mean": moments.mean(),
        "variance": moments.variance(),
        "steps": torch.tensor(moments.rows.steps),
        "rows": torch.stack([moments.rows.row(number) for number in kept]),
        "samples": moments.gaussian().sample(3, generator=torch.Generator().manual_seed(0)),
    }
    moments.close()
    save_arrays(folder / "result", result)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(__file__) as children:
        yield children


@pytest.mark.parametrize(
    ("format", "window"),
    [
        ("fp32", None),
        ("bfp8", 8),
        pytest.param("bfp8", None, marks=pytest.mark.slow),
        pytest.param("fp32", 8, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_anywhere_resumes_to_the_same_bits(
    children: Children, tmp_path: Path, format: str, window: int | None
) -> None:
    assert children.start("train", str(tmp_path / "whole"), format, window, 1e9).wait() == 80
    whole, _ = load_arrays(tmp_path / "whole" / "result")
    assert whole["steps"].tolist() == list(range(1, 81))
    chance, kills, where = random.Random(f"{format} {window}"), 0, tmp_path / "killed"
    while not (where / "result").exists():
        # the first is killed before the end of an epoch could have brought it a checkpoint
        child = children.start("train", str(where), format, window, chance.choice([0, 0.01]) if kills else 1e9)
        for _ in range(chance.randrange(40) if kills else 3):
            child.hear()
        child.kill() if kills < 30 else child.wait()
        assert child.status in (0, signal.SIGKILL)
        kills += 1
    assert kills > 3
    resumed, _ = load_arrays(where / "result")
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_moments_can_be_reopened_wherever_a_repeated_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a checkpoint older than the window, while iterates come again, and within every save of the moments."""
    thetas = list(torch.randn(26, 50, generator=torch.Generator().manual_seed(0)))
    layout = Layout((Entry("w", (50,), 0, torch.float32),))
    expected = Moments(layout)
    moments = Moments(layout, rows=RowLog(tmp_path / "rows"), keep=Window(8))
    for number, theta in enumerate(thetas[:20]):
        moments.update(theta, step=number)
        expected.update(theta)
        if number == 2:
            state = moments.state_dict()
    moments.close()
    copies: list[Path] = []

    def copy() -> Path:
        copies.append(tmp_path / f"copy {len(copies)}")
        return shutil.copytree(tmp_path / "rows", copies[-1])

    def save_and_die(self: MomentSlots, *arguments: Any, **more: Any) -> None:
        with open(copy() / ["moments-a.bin", "moments-b.bin"][self._next], "r+b") as half_written:
            half_written.write(bytes(64))
        save(self, *arguments, **more)

    save = MomentSlots.save
    monkeypatch.setattr(MomentSlots, "save", save_and_die)
    moments = Moments(layout, rows=RowLog(tmp_path / "rows"))
    moments.load_state_dict(state)
    for number, theta in enumerate(thetas[3:20], 3):
        moments.update(theta, step=number)
        if number % 5 == 0:
            moments.flush()
        copy()
    monkeypatch.undo()
    assert torch.equal(moments.variance(), expected.variance())
    for where in copies:
        again = Moments(layout, rows=RowLog(where, read_only=True))
        assert again.count == 20
        assert torch.equal(again.mean(), expected.mean())
        assert torch.equal(again.variance(), expected.variance())
    moments.close()


def test_moments_saved_before_rows_were_lost_do_not_come_back(tmp_path: Path) -> None:
    """A power cut can take rows that saved moments have seen; the run then goes another way."""
    thetas = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    layout = Layout((Entry("w", (50,), 0, torch.float32),))
    moments, expected = Moments(layout, rows=RowLog(tmp_path / "rows")), Moments(layout)
    for theta in thetas[:20]:
        moments.update(theta)
    moments.close()
    os.truncate(tmp_path / "rows" / "commits.bin", 10 * 64)
    moments = Moments(layout, rows=RowLog(tmp_path / "rows"))
    assert moments.count == 10
    for theta in thetas[20:]:
        moments.update(theta)
    assert moments.rows is not None
    moments.rows.close()  # as a kill: the moments are not saved
    for theta in (*thetas[:10], *thetas[20:]):
        expected.update(theta)
    assert torch.equal(Moments(layout, rows=RowLog(tmp_path / "rows")).mean(), expected.mean())


def test_first_iterate_can_come_again_after_there_was_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout((Entry("w", (50,), 0, torch.float32),))
    moments = Moments(layout, rows=RowLog(tmp_path / "rows"))

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "posix_fallocate"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(CapacityError):
                moments.update(torch.ones(50))
            assert moments.count == 0
    moments.update(torch.ones(50))
    moments.close()
    assert Moments(layout, rows=RowLog(tmp_path / "rows")).count == 1


def test_damaged_checkpoint_is_refused(children: Children, tmp_path: Path) -> None:
    child = children.start("train", str(tmp_path / "run"), "fp32", None, 0)
    while (child.hear() or 0) < 25:
        pass
    child.kill()
    checkpoint = tmp_path / "run" / "checkpoint"
    whole, chance = checkpoint.read_bytes(), random.Random(0)
    load_state(checkpoint, KIND)
    for trial in range(60):
        data = bytearray(whole)
        place = chance.randrange(len(data))
        if trial % 3 == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif trial % 3 == 1:
            del data[place:]
        else:
            data[place : place + 100] = chance.randbytes(100)
        checkpoint.write_bytes(data)
        with pytest.raises(WeightbankError):
            load_state(checkpoint, KIND)
    shutil.rmtree(tmp_path / "run")

from pathlib import Path

import pytest
import torch
from torch import nn

from weightbank.errors import DataError, ResumeError, StoreError
from weightbank.integrations import Recording


def steps(recording: Recording, model: nn.Module, first: int, last: int, *, shift: float = 0.0) -> list[torch.Tensor]:
    seen = []
    for step in range(first, last + 1):
        nn.init.constant_(model.weight, step + shift)
        recording.take(model, step)
        seen.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    return seen


def test_every_and_start_choose_the_steps() -> None:
    recording, model = Recording(every=3, start=4), nn.Linear(2, 1)
    recording.begin(model, 0)
    seen = steps(recording, model, 1, 14)
    assert recording.moments.count == 3  # steps 7, 10, 13
    assert torch.equal(recording.mean(), torch.stack([seen[6], seen[9], seen[12]]).mean(0))
    recording.assign_mean(model)
    assert torch.equal(model.weight.detach(), torch.full((1, 2), 10.0))


def test_a_step_that_comes_twice_is_taken_once() -> None:
    recording, model = Recording(), nn.Linear(2, 1)
    recording.begin(model, 0)
    for _ in range(4):  # accumulated gradients: the optimizer did not move
        recording.take(model, 1)
    assert recording.moments.count == 1


@pytest.mark.parametrize("format", ["fp32", "bfp8"])
def test_a_resumed_recording_drops_what_came_after_the_checkpoint(tmp_path: Path, format: str) -> None:
    model = nn.Linear(64, 1)
    first = Recording(tmp_path / "rows", format=format)
    first.begin(model, 0)
    steps(first, model, 1, 5)
    state = first.state_dict()
    steps(first, model, 6, 8)
    first.moments.close()

    again = Recording(tmp_path / "rows", format=format)
    again.load_state_dict(state)
    again.begin(model, 5)
    steps(again, model, 6, 7, shift=0.25)

    straight = Recording(tmp_path / "straight", format=format)
    straight.begin(model, 0)
    steps(straight, model, 1, 5)
    steps(straight, model, 6, 7, shift=0.25)
    assert again.moments.count == straight.moments.count == 7
    assert torch.equal(again.mean(), straight.mean())
    assert torch.equal(again.moments.variance(), straight.moments.variance())
    assert torch.equal(
        again.gaussian(covariance="sample").variance(), straight.gaussian(covariance="sample").variance()
    )


def test_rows_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    first = Recording(tmp_path / "rows")
    first.begin(model, 0)
    steps(first, model, 1, 2)
    first.moments.close()
    with pytest.raises(ResumeError, match="2 iterates of an earlier run"):
        Recording(tmp_path / "rows").begin(model, 0)
    with pytest.raises(ResumeError, match="holds nothing of this recording"):
        Recording(tmp_path / "other").begin(model, 3)
    late = Recording(tmp_path / "other", start=3)
    late.begin(model, 3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="every=0"):
        Recording(every=0)
    with pytest.raises(StoreError, match="not begun"):
        Recording().moments

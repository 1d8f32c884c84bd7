"""Moments on a log that somebody else is writing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightbank.distributions import Gaussian, Moments, Sketch, Window
from weightbank.errors import OverwrittenError
from weightbank.layout import Layout
from weightbank.store import RowLog
from weightbank.store.records import SKETCH

Layouts = Callable[[int], Layout]
Iterates = Callable[[int, int], list[Tensor]]
KEEPS = ["all", Window(5), Sketch(4)]


def covariance(law: Gaussian) -> Tensor:
    """Σ as a dense float64 matrix."""
    assert law.factor is not None
    factor = torch.cat([block for _, block in law.factor.blocks(torch.float64)], 1)
    return torch.diag(law.diagonal.double()) + factor.T @ factor


@pytest.mark.parametrize("keep", KEEPS)
def test_a_reader_sees_what_was_recorded_after_it_opened(
    layout_of: Layouts, iterates_of: Iterates, tmp_path: Path, keep: object
) -> None:
    iterates = iterates_of(60, 30)
    writer = Moments(layout_of(30), rows=RowLog(tmp_path), keep=keep)  # type: ignore[arg-type]
    for theta in iterates[:20]:
        writer.update(theta)
    writer.flush()
    reader = Moments(layout_of(30), rows=RowLog(tmp_path, read_only=True))
    assert reader.gaussian().rank == writer.gaussian().rank
    for theta in iterates[20:]:
        writer.update(theta)
    writer.flush()
    assert torch.equal(reader.mean(), writer.mean())
    assert reader.count == 60
    assert torch.equal(covariance(reader.gaussian()), covariance(writer.gaussian()))
    if not isinstance(keep, Sketch):
        (newest,) = reader.snapshots().draws(1)
        torch.testing.assert_close(newest, iterates[-1])
    writer.close()


@pytest.mark.parametrize("keep", [Window(5), Sketch(4)])
def test_a_reader_that_comes_between_two_states_looks_again(
    layout_of: Layouts, iterates_of: Iterates, tmp_path: Path, keep: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterates = iterates_of(60, 30)
    writer = Moments(layout_of(30), rows=RowLog(tmp_path), keep=keep)  # type: ignore[arg-type]
    for theta in iterates[:40]:
        writer.update(theta)
    writer.flush()
    log = RowLog(tmp_path, read_only=True)  # knows of 40 iterates; the saved moments will be newer, their rows gone
    for theta in iterates[40:]:
        writer.update(theta)
    writer.flush()
    reader = Moments(layout_of(30), rows=log)
    assert torch.equal(reader.mean(), writer.mean())
    with monkeypatch.context() as stuck:
        stuck.setattr(log, "refresh", lambda: log.count + 1)
        stuck.setattr(Moments, "_read_stored", lambda self: (_ for _ in ()).throw(OverwrittenError("gone")))
        with pytest.raises(OverwrittenError):
            reader.gaussian()
    assert torch.equal(reader.mean(), writer.mean())
    writer.close()


def test_an_unfinished_sketch_does_not_count(layout_of: Layouts, iterates_of: Iterates, tmp_path: Path) -> None:
    writer = Moments(layout_of(30), rows=RowLog(tmp_path), keep=Sketch(4))
    for theta in iterates_of(24, 30):  # a sketch and 8 - 4 newer iterates: full
        writer.update(theta)
    before = covariance(writer.gaussian())
    writer.flush()
    assert writer.rows is not None
    generation = int(writer.rows.journal.generations.max())
    assert generation > 1
    for _ in range(3):  # of 4: as if the process were killed here
        writer.rows.append(torch.ones(30), kind=SKETCH, generation=generation + 1)
    writer.rows.flush()
    reader = Moments(layout_of(30), rows=RowLog(tmp_path, read_only=True))
    assert torch.equal(covariance(reader.gaussian()), before)
    writer.rows.close()
    again = Moments(layout_of(30), rows=RowLog(tmp_path))
    assert torch.equal(covariance(again.gaussian()), before)
    again.close()

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch")

from weightbank.errors import ResumeError  # noqa: E402
from weightbank.integrations.lightning import RecordPosterior  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Network(pl.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.seen.append(nn.utils.parameters_to_vector(self.parameters()).detach().clone())


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (48,), generator=generator)), 8)


def fitted(
    folder: Path, callback: RecordPosterior, *, epochs: int, accumulate: int = 1, resume: Path | None = None
) -> tuple[Any, Network]:
    network = Network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            default_root_dir=folder,
        )
        trainer.fit(network, loader(), ckpt_path=resume)
    return trainer, network


def test_every_iterate_is_recorded(tmp_path: Path) -> None:
    callback = RecordPosterior(tmp_path / "rows")
    _, network = fitted(tmp_path, callback, epochs=2)
    moments = callback.recording.moments
    last = nn.utils.parameters_to_vector(network.parameters()).detach()
    iterates = torch.stack([*network.seen[1:], last]).double()
    assert moments.count == len(iterates) == 12
    torch.testing.assert_close(moments.mean().double(), iterates.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(moments.variance().double(), iterates.var(0, correction=0), rtol=1e-3, atol=1e-9)
    assert callback.recording.gaussian().sample(3).shape == (3, 67)


def test_accumulated_batches_are_one_iterate(tmp_path: Path) -> None:
    callback = RecordPosterior()
    fitted(tmp_path, callback, epochs=1, accumulate=3)
    assert callback.recording.moments.count == 2


def test_a_checkpoint_carries_the_moments(tmp_path: Path) -> None:
    straight = RecordPosterior(tmp_path / "straight")
    fitted(tmp_path, straight, epochs=3)

    first = RecordPosterior(tmp_path / "rows")
    trainer, _ = fitted(tmp_path, first, epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    fitted(tmp_path, first, epochs=2, resume=tmp_path / "one.ckpt")  # rows that are dropped below
    first.recording.moments.close()

    again = RecordPosterior(tmp_path / "rows")
    fitted(tmp_path, again, epochs=3, resume=tmp_path / "one.ckpt")
    assert again.recording.moments.count == 18
    assert torch.equal(again.recording.mean(), straight.recording.mean())
    assert torch.equal(again.recording.moments.variance(), straight.recording.moments.variance())


def test_a_second_run_into_the_same_rows_is_refused(tmp_path: Path) -> None:
    first = RecordPosterior(tmp_path / "rows")
    fitted(tmp_path, first, epochs=1)
    first.recording.moments.close()
    with pytest.raises(ResumeError, match="6 iterates of an earlier run"):
        fitted(tmp_path, RecordPosterior(tmp_path / "rows"), epochs=1)

"""A callback for Lightning that records a posterior, or an average, while its `Trainer` trains."""

from pathlib import Path
from typing import Any

from weightbank.errors import LayoutError
from weightbank.integrations.recording import Recording
from weightbank.store import RowLog

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the same library by its older name
    from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]


class RecordPosterior(Callback):
    """Gives the weights after optimizer steps to `recording.moments`; on the first process only.

    Args:
        rows: a directory (or `RowLog`) for every iterate's row; None keeps mean and variance only.
        options: format, keep, every, start and where, as for `Recording`.

    The callback's state goes into Lightning's checkpoints, so `fit(..., ckpt_path=...)` goes on with the same log.
    Models whose weights are sharded over processes (FSDP, DeepSpeed stage 3) are refused with `LayoutError`.
    """

    def __init__(self, rows: str | Path | RowLog | None = None, **options: Any) -> None:
        super().__init__()
        self.recording = Recording(rows, **options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the log."""
        if any(not p.numel() for p in pl_module.parameters()) and trainer.world_size > 1:
            raise LayoutError(
                f"the weights are sharded over {trainer.world_size} processes; record with strategy='ddp' or one device"
            )
        if trainer.is_global_zero:
            self.recording.begin(pl_module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights if the optimizer made a step."""
        if trainer.is_global_zero:
            self.recording.take(pl_module, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store everything."""
        self.recording.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Store everything."""
        self.recording.finish()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoints."""
        return self.recording.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoints."""
        self.recording.load_state_dict(state_dict)

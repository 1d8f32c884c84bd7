"""A callback for the Hugging Face `Trainer` that records a posterior, or an average, while it trains."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from weightbank.integrations.recording import Recording
from weightbank.store import RowLog
from weightbank.store.state import load_state, save_state

FILE = "weightbank.safetensors"
_KIND = "weightbank recording 1"


class RecordPosterior(TrainerCallback):
    """Gives the weights after optimizer steps to `recording.moments`; on the first process only.

    Args:
        rows: a directory (or `RowLog`) for every iterate's row; None keeps mean and variance only.
        checkpoint: the checkpoint directory that training resumes from; by default `checkpoint-N` in the `Trainer`'s
            output directory, N the step it goes on at.
        options: format, keep, every, start and where, as for `Recording`.

    The moments are written beside each of the `Trainer`'s checkpoints, so `train(resume_from_checkpoint=True)` goes on
    with the same log.
    """

    def __init__(
        self, rows: str | Path | RowLog | None = None, *, checkpoint: str | Path | None = None, **options: Any
    ) -> None:
        self.recording = Recording(rows, **options)
        self._checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the log; go on from a checkpoint's moments."""
        if not state.is_world_process_zero:
            return
        if state.global_step:
            saved = Path(self._checkpoint or _folder(args, state)) / FILE
            if saved.exists():
                self.recording.load_state_dict(load_state(saved, _KIND))
        self.recording.begin(kwargs["model"], state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the weights."""
        if state.is_world_process_zero:
            self.recording.take(kwargs["model"], state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the moments beside the checkpoint."""
        if state.is_world_process_zero:
            self.recording.finish()
            folder = _folder(args, state)
            folder.mkdir(parents=True, exist_ok=True)
            save_state(folder / FILE, self.recording.state_dict(), _KIND)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store everything."""
        self.recording.finish()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"

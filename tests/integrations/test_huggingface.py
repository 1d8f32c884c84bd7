from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from weightbank.distributions import Moments  # noqa: E402
from weightbank.integrations.huggingface import RecordPosterior  # noqa: E402
from weightbank.layout import Layout  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randint(0, 50, (32, 6), generator=generator)
        self.y = torch.randint(0, 2, (32,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.x[index], "labels": self.y[index]}


class Watch(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.seen.append(Layout.of(model).ravel(model).clone())


def network() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def trained(folder: Path, callback: RecordPosterior, *, epochs: int, resume: bool | str = False) -> Watch:
    watch = Watch()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = transformers.Trainer(model=network(), args=arguments, train_dataset=Rows(), callbacks=[callback, watch])
    trainer.train(resume_from_checkpoint=resume)
    return watch


def test_every_iterate_is_recorded(tmp_path: Path) -> None:
    callback = RecordPosterior(tmp_path / "rows", format="bfp8", every=2, start=2)
    watch = trained(tmp_path / "out", callback, epochs=2)
    moments = callback.recording.moments
    assert len(watch.seen) == 8
    iterates = torch.stack(watch.seen[3::2]).double()  # steps 4, 6, 8
    assert moments.count == len(iterates) == 3
    torch.testing.assert_close(moments.mean().double(), iterates.mean(0), rtol=1e-5, atol=1e-7)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = RecordPosterior(tmp_path / "straight")
    trained(tmp_path / "whole", straight, epochs=3)

    first = RecordPosterior(tmp_path / "rows")
    trained(tmp_path / "out", first, epochs=2)
    assert isinstance(first.recording.moments, Moments)
    first.recording.moments.close()
    again = RecordPosterior(tmp_path / "rows", checkpoint=tmp_path / "out" / "checkpoint-4")
    trained(tmp_path / "out", again, epochs=3, resume=str(tmp_path / "out" / "checkpoint-4"))
    assert again.recording.moments.count == 12
    assert torch.equal(again.recording.mean(), straight.recording.mean())
    assert torch.equal(again.recording.moments.variance(), straight.recording.moments.variance())

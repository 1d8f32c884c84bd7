import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from weightbank.cli.settings import RUN_FILE, Settings
from weightbank.errors import CorruptError, StoreError

SETTINGS = Settings(
    model="mlp",
    data="digits",
    epochs=3,
    batch_size=100,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=0.0,
    every=1,
    keep="all",
    format="fp32",
    medium="file",
    node=None,
    device="cpu",
    csv=None,
    seed=0,
    durability="process",
    skip_epochs=0,
    schedule="constant",
    swa_learning_rate=0.025,
)


def test_settings_come_back_as_they_were_saved(tmp_path: Path) -> None:
    other = replace(SETTINGS, node="/dev/dax0.0", csv="results.csv", weight_decay=1e-4)
    other.save(tmp_path)
    assert Settings.load(tmp_path) == other


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", "3"), ("epochs", True), ("momentum", None), ("node", 3), ("model", ["mlp"])]
)
def test_a_setting_of_another_type_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    content = {"kind": "weightbank run 1", **asdict(SETTINGS), name: value}
    (tmp_path / RUN_FILE).write_text(json.dumps(content))
    with pytest.raises(CorruptError, match=f"{name}="):
        Settings.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "weightbank run 1"}', "[" * 100_000, "{" + " " * (1 << 17)])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(CorruptError):
        Settings.load(tmp_path)


def test_a_directory_without_a_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="posterior run"):
        Settings.load(tmp_path)

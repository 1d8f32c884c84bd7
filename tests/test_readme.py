"""The README does what it says: its Python and its commands run in an empty directory."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_blocks_run_one_after_another(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert (tmp_path / "digits-posterior.safetensors").exists()


@pytest.mark.slow
def test_the_commands_run_one_after_another(tmp_path: Path) -> None:
    commands = [shlex.split(line, comments=True) for block in blocks("console") for line in block.splitlines()]
    ours = [command[1:] for command in commands if command[0] == "weightbank"]
    assert len(ours) >= 5
    for arguments in ours:
        command = [sys.executable, "-m", "weightbank", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert (tmp_path / "digits.safetensors").exists()

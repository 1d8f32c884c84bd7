"""The pages of docs/ do what they say: their Python and their commands run in an empty directory."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_there_is_a_page_for_each_job() -> None:
    assert {"format.md", "low-precision.md", "noisy-devices.md", "pages.md"} <= set(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_the_commands_of_a_page_run_one_after_another(page: str, tmp_path: Path) -> None:
    lines = [line for block in blocks(page, "console") for line in block.replace("\\\n", " ").splitlines()]
    ours = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("weightbank ")]
    assert ours
    for arguments in ours:
        command = [sys.executable, "-m", "weightbank", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)

"""The pages of docs/, the README and CONTRIBUTING do as they say: their Python, their commands, and all they name."""

import re
import shlex
import subprocess
import sys
import tomllib
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from weightbank.cli import app
from weightbank.zoo import MODELS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(DOCS / page for page in PAGES)]

NOT_RUN = {
    "README.md": {
        "law              accuracy %": "printed by make tour",
        "job                                      what": "printed by make tour",
    },
    "from-swalp.md": {"weightbank train --model vgg16_cifar10": "300 epochs of VGG16; its options are parsed"},
    "media.md": {
        "mkfs.ext4 /dev/nvme0n1": "formats a disk, as root",
        "ndctl create-namespace --mode=fsdax": "persistent memory, as root",
        "ndctl create-namespace --mode=devdax": "persistent memory, as root",
        "ipmctl create -goal": "Optane or CXL memory, as root",
    },
}
"""Blocks that nothing runs, by their first words, and why."""


class Block(NamedTuple):
    language: str
    text: str


def blocks_of(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)]


def blocks(page: str, language: str) -> list[str]:
    return [block.text for block in blocks_of((DOCS / page).read_text()) if block.language == language]


def commands(text: str) -> list[list[str]]:
    """Lines of a block as words, without comments; a backslash joins lines."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def test_there_is_a_page_for_each_job_and_each_published_system() -> None:
    jobs = {"posterior.md", "noisy-devices.md", "low-precision.md", "pages.md", "budget.md"}
    assert jobs | {"from-swag-nvm.md", "from-swim.md", "from-swalp.md", "from-nwv.md"} <= set(PAGES)


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    reasons = dict(NOT_RUN.get(page.name, {}))
    for language, text in blocks_of(page.read_text()):
        if language == "text":
            known = [start for start in reasons if text.startswith(start)]
            assert known, f"{page.name}: nothing runs this block, and NOT_RUN gives no reason:\n{text}"
            reasons.pop(known[0])
        else:
            assert language in ("python", "console", "toml", "bibtex"), (
                f"{page.name}: a block of {language or 'nothing'}"
            )
    assert not reasons, f"{page.name} has no such blocks any more: {[*reasons]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")])
def test_the_commands_of_a_page_run_one_after_another(page: str, tmp_path: Path) -> None:
    lines = [words for block in blocks(page, "console") for words in commands(block)]
    assert lines
    for program, *arguments in lines:
        assert program == "weightbank", (page, program)
        command = [sys.executable, "-m", "weightbank", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)


def test_what_make_is_asked_for_is_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = [words for page in ALL for block in blocks_of(page.read_text()) for words in commands_if_console(block)]
    made = [words[1] for words in asked if words[0] == "make"]
    assert set(made) >= {"tour", "test", "check"}
    assert set(made) <= set(targets)


def commands_if_console(block: Block) -> list[list[str]]:
    return commands(block.text) if block.language == "console" else []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_tables_of_networks_name_models_and_settings_that_exist(page: str) -> None:
    for text in blocks(page, "toml"):
        for network in tomllib.loads(text).values():
            assert network.keys() <= {"model", "data", "weights", "importance", "epochs", "rate", "seed"}
            assert network["model"] in MODELS


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_citations_are_whole() -> None:
    (text,) = blocks("papers.md", "bibtex")
    entries = [entry for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE) if entry]
    assert len(entries) >= 5
    for entry in entries:
        assert entry.count("{") == entry.count("}")
        assert {"title", "author", "year"} <= set(re.findall(r"^  (\w+) +=", entry, re.MULTILINE)), entry


def parsed(words: list[str]) -> Any:
    """The command that `words` call, after every option of theirs was looked for in it."""
    command: Any = get_command(app)
    at = 0
    while hasattr(command, "commands") and at < len(words) and words[at] in command.commands:
        command = command.commands[words[at]]
        at += 1
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [
        word for word in words[at:] if re.fullmatch(r"--?[A-Za-z][\w-]*", word) and word not in options | {"--help"}
    ]
    assert not unknown, f"weightbank {' '.join(words)}: no option {unknown} in {command.name}"
    return command


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_commands_named_in_the_text_exist_with_their_options(page: Path) -> None:
    text = page.read_text()
    spans = re.findall(r"(?<!`)`([^`\n]*\bweightbank [a-z][^`\n]*)`(?!`)", text)
    spans += [
        " ".join(words) for block in blocks_of(text) if block.language == "text" for words in commands(block.text)
    ]
    for span in spans:
        _, found, rest = span.partition("weightbank ")
        if found and rest[0].islower():
            words = rest.replace("|", " ").split()
            group = get_command(app).commands.get(words[0])  # type: ignore[attr-defined]
            assert group is not None, f"{page.name}: {span}"
            if "|" not in rest:
                command = parsed(words)
                assert not hasattr(command, "commands") or len(words) == 1, f"{page.name}: no command {span}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_names_of_the_library_in_the_text_exist(page: Path) -> None:
    code = "".join(re.findall(r"`+[^`]+`+", page.read_text()))
    for name in sorted(set(re.findall(r"\b(?:wb|weightbank)\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", code))):
        parts = name.split(".")
        try:
            reduce(found, parts, import_module("weightbank"))
        except (AttributeError, ImportError) as error:
            raise AssertionError(f"{page.name} names weightbank.{name}: {error}") from error


def found(owner: Any, name: str) -> Any:
    """A name of a module, a class, or a submodule."""
    if hasattr(owner, name):
        return getattr(owner, name)
    return import_module(f"{owner.__name__}.{name}")

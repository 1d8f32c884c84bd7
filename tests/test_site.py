"""The reference describes every public name, and the hooks leave out nothing silently (needs weightbank[docs])."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import weightbank

SITE = Path(__file__).parent.parent / "docs" / "site"

pytest.importorskip("mkdocs")
griffe = pytest.importorskip("griffe")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", weightbank._PACKAGES)
def test_every_public_name_of_a_package_is_described_or_linked(package: str) -> None:
    page = loaded("hooks")._package_page(f"weightbank.{package}")
    for name in getattr(weightbank, package).__all__:
        assert f".{name}\n    options: {{show_root_heading" in page or f"[`{name}`][weightbank." in page


def test_every_public_name_of_weightbank_is_in_its_table() -> None:
    page = loaded("hooks")._top_page()
    assert all(f"[`weightbank.{name}`][weightbank." in page for name in weightbank.__all__)


def test_a_name_is_found_where_it_is_made() -> None:
    home = loaded("hooks")._home
    assert home("weightbank", "RowLog") == "weightbank.store.rows"
    assert home("weightbank.curvature", "ggn") == "weightbank.curvature.ggn"
    assert home("weightbank.zoo", "MODELS") == "weightbank.zoo"


def test_a_section_of_the_readme_ends_where_the_next_begins() -> None:
    hooks = loaded("hooks")
    text = hooks.on_page_markdown("<!-- README: Noisy devices -->\n\n[x](../README.md#one-budget)\n", page=None)
    assert text.startswith("# Noisy devices\n")
    assert "(noisy-devices.md)" in text
    assert "## Low precision" not in text
    assert text.endswith("[x](index.md#one-budget)\n")
    with pytest.raises(ValueError, match="no section 'Nonsense'"):
        hooks.on_page_markdown("<!-- README: Nonsense -->", page=None)


def test_examples_in_docstrings_are_fenced_with_their_output() -> None:
    text = "One line.\n\n>>> 1 + 1\n2\n>>> x = (\n...     3)\n\nMore."
    thing = SimpleNamespace(docstring=griffe.Docstring(text))
    loaded("doctests").Doctests().on_object(obj=thing)
    fenced = "```pycon\n>>> 1 + 1\n2\n>>> x = (\n...     3)\n```"
    assert thing.docstring.value == f"One line.\n\n{fenced}\n\nMore."

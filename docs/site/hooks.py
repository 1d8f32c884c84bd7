"""The documentation site: parts of the README on its pages, links that hold there and on the web, reference pages.

mkdocs calls the functions here while it builds (`mkdocs.yml`, `hooks:`).
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
MORE = {"cim": ["spending"], "paging": ["experiments"], "report": ["page", "results", "tables"]}
"""Modules of packages that users import from, though the package does not repeat their names."""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add `api/NAME.md` for `weightbank` and each of its public packages, made of what their docstrings say."""
    files.append(File.generated(config, "api/weightbank.md", content=_top_page()))
    for name in sorted(path.parent.name for path in SOURCE.glob("weightbank/*/__init__.py")):
        if name != "cli":
            files.append(File.generated(config, f"api/{name}.md", content=_package_page(f"weightbank.{name}")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put sections of the README where a page says `<!-- README: Heading -->`; links to it lead to the front.

    A page that begins with such a line has the section's heading for its title.
    """
    markdown = re.sub(r"^<!-- README: (.+) -->$", lambda found: _section(found[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"\A## ", "# ", markdown.replace("](../README.md", "](index.md"))


def on_page_content(html: str, **_: Any) -> str:
    """Shapes without the blank that jaxtyping wants before a single name: `Float[Tensor, "P"]`."""
    return re.sub(r"&#39; ([^&]+)&#39;", r"&#39;\1&#39;", html)


def _section(heading: str) -> str:
    """What the README says from that heading to the next one of the first two levels, heading included."""
    sections: dict[str, list[str]] = {}
    inside, here = False, sections.setdefault("", [])
    for line in (ROOT / "README.md").read_text().splitlines():
        inside ^= line.startswith("```")
        if not inside and re.match("##? ", line):
            here = sections.setdefault(line.lstrip("# "), [])
        here.append(line)
    if heading not in sections:
        raise ValueError(f"README.md has no section {heading!r}, which a page of docs/ includes; it has {[*sections]}")
    return "\n".join(sections[heading]).replace("](docs/", "](").strip()


def _top_page() -> str:
    """Every name of `weightbank` and where it is described; here: names of no package, errors, shapes."""
    tree, names = _read("weightbank")
    homes = {name: _home("weightbank", name) for name in names}
    rows = [
        f"| [`weightbank.{name}`][{home}.{name}] | `{'.'.join(home.split('.')[:2])}` |" for name, home in homes.items()
    ]
    table = "\n".join(["| name | described with |", "|---|---|", *rows])
    own = [
        _described(home, name, "weightbank")
        for name, home in homes.items()
        if len(home.split(".")) == 2 and home != "weightbank.errors"
    ]
    shapes = "```python\n" + _path("weightbank.types").read_text() + "```"
    errors = _module_part("weightbank.errors")
    return "\n\n".join(["# weightbank", ast.get_docstring(tree) or "", table, *own, errors, "## Shapes", shapes])


def _package_page(package: str) -> str:
    """A package's docstring, each name of its `__all__`, and the modules in `MORE`."""
    parts = [f"# {package}", f"::: {package}\n    options: {{members: false}}"]
    for name in _read(package)[1]:
        home = _home(package, name)
        if home.startswith(package):
            parts.append(_described(home, name, package))
        else:
            parts.append(f"[`{name}`][{home}.{name}] is described with `{'.'.join(home.split('.')[:2])}`.")
    more = MORE.get(package.removeprefix("weightbank."), ())
    return "\n\n".join([*parts, *(_module_part(f"{package}.{module}") for module in more)])


def _described(home: str, name: str, package: str) -> str:
    """What stands in module `home`, under the name that users import."""
    options = {
        "show_root_heading": "true",
        "show_root_toc_entry": "true",
        "heading": f"{package}.{name}",
        "toc_label": name,
    }
    return f"::: {home}.{name}\n    options: {{{', '.join(f'{key}: {value}' for key, value in options.items())}}}"


def _module_part(module: str) -> str:
    return f"## {module}\n\n::: {module}\n    options: {{heading_level: 3}}"


def _path(module: str) -> Path:
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _read(module: str) -> tuple[ast.Module, list[str]]:
    """The syntax tree of a module, and its `__all__`."""
    tree = ast.parse(_path(module).read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    names = [node.value for node in assigned if getattr(node.targets[0], "id", "") == "__all__"]
    return tree, ast.literal_eval(names[0]) if names else []


def _home(module: str, name: str) -> str:
    """The module where a name is made: through every `from ... import name`, beginning with the one in `module`."""
    for node in ast.walk(_read(module)[0]):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return _home(str(node.module), name)
    return module

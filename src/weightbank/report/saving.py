"""Write a figure to a file: `.svg` that follows the page from light to dark, `.png` as it was drawn."""

import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from weightbank.errors import DataError
from weightbank.report.themes import swapped
from weightbank.store.media import Directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200


def drawing() -> ModuleType:
    """The matplotlib package, imported when it is needed; `DataError` says how to get it."""
    try:
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise DataError("figures need matplotlib, which is missing: pip install weightbank[report]") from error


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write `figure` to `path`, atomically; the ending says how, `.svg` or `.png` (200 dots per inch).

    In an SVG file text stays text, and a light figure turns dark where its reader prefers that (prefers-color-scheme).
    The same figure gives the same bytes. Raises `DataError` for another ending.
    """
    matplotlib = drawing()
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise DataError(f"{path}: a figure ends in .svg or .png, not in '{path.suffix}'")
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "weightbank"}):
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(written, format=kind, dpi=DPI, metadata=metadata, facecolor=figure.get_facecolor())
    data = written.getvalue()
    Directory(path.parent).replace(path.name, _following(data) if kind == "svg" else data)


def _following(svg: bytes) -> bytes:
    """The drawing with rules that put each light colour's dark one in its place on dark pages."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in swapped().items()
        for what in ("fill", "stroke")
    )
    head, mark, rest = svg.partition(b"<defs>")
    return head + f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>\n ".encode() + mark + rest

import re
import struct
import sys
import xml.etree.ElementTree as ET

import pytest

from weightbank.errors import DataError
from weightbank.report import accuracy_figure, save_figure
from weightbank.report.saving import drawing
from weightbank.report.themes import DARK, LIGHT, swapped


def test_an_svg_keeps_its_text_and_turns_dark_with_its_page(found, tmp_path):
    path = tmp_path / "new" / "figure.svg"
    save_figure(accuracy_figure(found, title="<LeNet>"), path)
    text = path.read_text()
    root = ET.fromstring(text)
    words = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {*found.methods, "accuracy %", "<LeNet>", "exact weights 98.2"} <= words
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", text.partition("</style>")[2]))
    assert used <= set(swapped())  # every colour that is drawn has a dark one
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert style.startswith("@media (prefers-color-scheme: dark)")
    for light in used:
        assert f'[style*="fill: {light}"]{{fill:{swapped()[light]}!important}}' in style
        assert f'[style*="stroke: {light}"]{{stroke:{swapped()[light]}!important}}' in style
    assert LIGHT.page in used
    assert DARK.page not in used


def test_the_same_figure_gives_the_same_bytes(found, tmp_path):
    for name in ("a.svg", "b.svg"):
        save_figure(accuracy_figure(found), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_png_has_200_dots_per_inch(found, tmp_path):
    figure = accuracy_figure(found)
    save_figure(figure, tmp_path / "figure.png")
    head = (tmp_path / "figure.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == tuple(round(200 * side) for side in figure.get_size_inches())


def test_other_endings_and_a_missing_matplotlib_are_said(found, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"ends in \.svg or \.png"):
        save_figure(accuracy_figure(found), tmp_path / "figure.jpg")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DataError, match=r"pip install weightbank\[report\]"):
        drawing()

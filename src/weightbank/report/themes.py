"""Colours for light and dark pages: those of Okabe and Ito, which the colour-blind can tell apart, and greys."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """A page's colours as `#rrggbb`: behind everything, of text, of what is less important, and of lines in order."""

    page: str
    text: str
    muted: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme(
    page="#ffffff",
    text="#1f2328",
    muted="#636c76",
    grid="#e4e7eb",
    lines=(
        "#0072b2",
        "#d55e00",
        "#008f68",
        "#b04a86",
        "#7a5c00",
        "#2f8fc4",
        "#5d4bb3",
        "#4f5a63",
        "#b3261e",
        "#6b8e00",
    ),
)

DARK = Theme(
    page="#0d1117",
    text="#e6edf3",
    muted="#9198a1",
    grid="#2a313a",
    lines=(
        "#56b4e9",
        "#ff8f3f",
        "#2fc79b",
        "#e58bbd",
        "#e0b83e",
        "#8fd0f4",
        "#a99bf5",
        "#b3bdc7",
        "#ff8a80",
        "#b5d65b",
    ),
)


def swapped() -> dict[str, str]:
    """Each light colour's dark one."""
    pairs = [(LIGHT.page, DARK.page), (LIGHT.text, DARK.text), (LIGHT.muted, DARK.muted), (LIGHT.grid, DARK.grid)]
    return dict(pairs + list(zip(LIGHT.lines, DARK.lines, strict=True)))

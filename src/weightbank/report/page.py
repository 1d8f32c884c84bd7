"""Results as one self-contained HTML page: no script, nothing loaded, light and dark, readable on a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from weightbank.errors import DataError
from weightbank.report.pictures import Draw, Picture, picture_of
from weightbank.report.results import Result
from weightbank.report.tables import Table, clipped, tables_of
from weightbank.report.themes import DARK, LIGHT, Theme

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load: nothing; its own styles and drawn images apply."""

LONG = 40
"""Characters of a cell that may break into lines."""

FOLDED = 24
"""Tables of more rows are folded; the reader opens them."""

SETTINGS = ("made of", "device", "settings", "options", "plan", "notes", "arrays")
"""Tables that say what was asked for: folded, at the end."""


@dataclass(frozen=True)
class Section:
    """A part of a page: plain text everywhere but in the pictures, which are SVG of this program's own.

    lead: what this is and what to see. source: where it came from. notes: what is missing, and why.
    """

    title: str
    lead: str = ""
    source: str = ""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def section_of(result: Result, draws: Mapping[str, Draw] | None = None) -> Section:
    """A result's numbers as tables, with the figure of its kind where it can be drawn, else the reason why not."""
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    try:
        picture = picture_of(result, draws)
        pictures = () if picture is None else (picture,)
    except DataError as error:
        notes = (f"No figure: {error}.",)
    source = f"{result.name}, by weightbank {result.kind.command}"
    tables = tuple(tables_of(result.document))
    return Section(result.kind.title, result.kind.see, source, pictures, tables, notes)


def page(sections: Sequence[Section], *, title: str = "weightbank", lead: str = "") -> str:
    """The whole document; everything that is not a picture is escaped, and the page may load and run nothing.

    Raises `DataError` for no sections.
    """
    if not sections:
        raise DataError("no results came; wanted at least one for a page")
    contents = "".join(
        f'<li><a href="#s{number}">{_text(section.title)}</a> <small>{_text(section.source)}</small></li>\n'
        for number, section in enumerate(sections, 1)
    )
    nav = f"<nav><ol>\n{contents}</ol></nav>\n" if len(sections) > 1 else ""
    parts = "".join(_section(number, section) for number, section in enumerate(sections, 1))
    intro = f"<p>{_text(lead)}</p>\n" if lead else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_text(title)}</h1>\n{intro}{nav}{parts}</main>\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    source = f'<p class="source">{_text(section.source)}</p>\n' if section.source else ""
    lead = f"<p>{_text(section.lead)}</p>\n" if section.lead else ""
    notes = "".join(f'<p class="note">{_text(note)}</p>\n' for note in section.notes)
    figures = "".join(
        f"<figure>\n{picture.svg}<figcaption>{_text(picture.caption)}</figcaption>\n</figure>\n"
        for picture in section.pictures
    )
    ordered = sorted(section.tables, key=lambda table: _is_setting(table))  # what came out before what went in
    tables = "".join(_table(table) for table in ordered)
    head = f'<section id="s{number}">\n<h2>{_text(section.title)}</h2>\n{source}{lead}{notes}{figures}'
    return f'{head}<div class="tables">\n{tables}</div>\n</section>\n'


def _table(table: Table) -> str:
    bare = table.columns == ("", "value")
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    head = "" if bare else f"<thead><tr>{head}</tr></thead>\n"
    rows = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(_cell(cell) for cell in rest)}</tr>\n'
        for first, *rest in table.rows
    )
    name = _text(table.caption or "all in one")
    long = any(len(cell) > LONG for row in table.rows for cell in row)
    kind = "facts" if bare else "rows left" if long else "rows"
    body = f'<div class="scroll" role="region" tabindex="0" aria-label="{name}"><table class="{kind}">\n{head}'
    body += f"<tbody>\n{rows}</tbody>\n</table></div>\n"
    if len(table.rows) > FOLDED or _is_setting(table):
        return f"<details><summary>{name}: {len(table.rows):,} rows</summary>\n{body}</details>\n"
    return "<div>" + (f"<h3>{name}</h3>\n" if table.caption else "") + f"{body}</div>\n"


def _is_setting(table: Table) -> bool:
    return table.caption.partition(" / ")[0] in SETTINGS


def _cell(cell: str) -> str:
    """Long texts may break into lines, all others stay on one."""
    kind = ' class="long"' if len(cell) > LONG else ""
    return f"<td{kind}>{_text(cell)}</td>"


def _text(text: str) -> str:
    return escape(clipped(text, 4000))


def _colours(theme: Theme) -> str:
    return f"--page:{theme.page};--text:{theme.text};--muted:{theme.muted};--line:{theme.grid};--link:{theme.lines[0]};"


STYLE = (
    f":root{{color-scheme:light dark;{_colours(LIGHT)}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_colours(DARK)}}}}}\n"
    """*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0 1rem}
h2{font-size:1.25rem;line-height:1.25;margin:0}
h3{font-size:1rem;margin:1.25rem 0 .25rem}
section{border-top:1px solid var(--line);margin-top:2rem;padding-top:1.25rem}
a{color:var(--link)}
nav li{margin:.25rem 0}
small,.source,figcaption{color:var(--muted);font-size:.875rem}
.source{margin:.15rem 0 .75rem}
.note{border-left:3px solid var(--link);padding-left:.75rem}
figure{margin:1rem 0;max-width:30rem}
figure svg{width:100%;height:auto;display:block}
figcaption{margin-top:.4rem}
.tables{display:flex;flex-wrap:wrap;gap:0 2.5rem;align-items:flex-start}
.tables>*{max-width:100%;min-width:0}
.tables>details{flex-basis:100%}
figure svg image{image-rendering:pixelated}
.scroll{overflow-x:auto;margin:.25rem 0 1rem;max-width:100%}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem .25rem 0;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th,td{white-space:nowrap;overflow-wrap:normal}
td.long{white-space:normal;overflow-wrap:anywhere;min-width:16rem}
.left th,.left td{text-align:left}
th{font-weight:600}
th:first-child{text-align:left}
.facts th{font-weight:400;color:var(--muted)}
.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere}
summary{cursor:pointer;margin:1rem 0 .25rem;font-weight:600}
"""
)

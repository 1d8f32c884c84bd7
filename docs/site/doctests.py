"""Examples in docstrings (`>>>`) become code blocks of the site; as plain Markdown they would be quotations."""

import re
from typing import Any

from griffe import Docstring, Extension, Object

EXAMPLE = re.compile(r"^(?P<indent>[ \t]*)>>> .*(?:\n(?P=indent)\S.*)*", re.MULTILINE)


class Doctests(Extension):
    """Fence every run of lines that begins with `>>>`, its output included."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each thing it has read."""
        if isinstance(obj.docstring, Docstring):
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    return f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```"

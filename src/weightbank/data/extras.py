"""Importing a package that only the `hub` extra brings, when it is needed and not before."""

import importlib
from typing import Any

from weightbank.errors import DataError


def require(module: str, purpose: str) -> Any:
    """Import `module`; a DataError says what it was needed for and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"PIL": "pillow"}.get(module.partition(".")[0], module.partition(".")[0])
        raise DataError(f"{purpose} needs {package}, which is missing: pip install weightbank[hub]") from error

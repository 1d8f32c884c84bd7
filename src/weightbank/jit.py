"""Compile a numeric loop with numba, lazily: importing the library never imports numba."""

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def available() -> bool:
    """Whether numba can be imported; where it cannot, the plain torch references run."""
    return find_spec("numba") is not None


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled without holding the GIL, cached on disk where that can be written."""
    import numba

    plain = inspect.unwrap(function)  # without run-time type checks, which numba cannot compile
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, nogil=True)(plain)
    except RuntimeError:  # nowhere to write the cache: compile in every process
        compiled = numba.njit(nogil=True)(plain)
    return compiled

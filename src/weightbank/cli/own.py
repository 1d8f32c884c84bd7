"""Models and tasks that a user's own file makes."""

import importlib
import sys
from pathlib import Path

import torch

from weightbank.errors import DataError
from weightbank.task import Task


def called(name: str) -> torch.nn.Module | Task:
    """What the function of `module:function`, in a file of the present directory, returns."""
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module.removesuffix(".py")), function)()
    except (ImportError, AttributeError) as error:
        raise DataError(f"{name}: {error}; wanted FILE:FUNCTION with FILE.py in this directory") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, Task | torch.nn.Module):
        raise DataError(f"{name} returned a {type(made).__name__}; wanted a weightbank.Task or a torch.nn.Module")
    return made

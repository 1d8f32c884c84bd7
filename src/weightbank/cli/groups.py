"""Options that several commands share, written once: a parameter whose type is a dataclass stands for its fields."""

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer should see it: each parameter annotated with a dataclass gives way to that class's fields.

    A field is an option as a parameter would be: `Annotated` with its `typer.Option`, its default the option's.
    """
    groups: dict[str, tuple[type, list[str]]] = {}
    seen: list[inspect.Parameter] = []
    for parameter, kind in _typed(command):
        if isinstance(kind, type) and is_dataclass(kind):
            fields = [field.replace(annotation=hint) for field, hint in _typed(kind)]
            groups[parameter.name] = (kind, [field.name for field in fields])
            seen += fields
        else:
            seen.append(parameter.replace(annotation=kind))

    def called(**given: Any) -> None:
        for name, (kind, fields) in groups.items():
            given[name] = kind(**{field: given.pop(field) for field in fields})
        command(**given)

    called.__doc__, called.__name__ = command.__doc__, command.__name__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in seen}
    ordered = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in seen]
    called.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    return called


def _typed(called: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    """The parameters of a function or a dataclass, each with its annotation."""
    hints = get_type_hints(called, include_extras=True)
    return [(parameter, hints[name]) for name, parameter in inspect.signature(called).parameters.items()]

"""A record of the torch functions that led from weights to outputs, each with what it got and gave."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightbank.errors import CurvatureError

Pulled = list[tuple[Tensor, Tensor]]
"""Inputs of a step, each with what belongs to it."""


@dataclass(frozen=True)
class Step:
    """One call; tensors are known by identity, and one that the call itself overwrites is kept as a copy.

    name: the function's, without the marks of its variants (`add` for `torch.add`, `Tensor.add_` and `+=`).
    function: the variant that returns a new tensor. outputs: those that depend on weights. before: by identity, the
    values of all tensors it got, with their versions. module: the innermost module it was called in.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    before: dict[int, tuple[Tensor, int]]
    module: str

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments that depend on weights, each once."""
        return list({id(t): t for t in tensors_in((self.args, self.kwargs)) if t.requires_grad}.values())

    def value(self, tensor: Tensor) -> Tensor:
        """What the call got; raises `CurvatureError` if that was overwritten later."""
        kept, version = self.before[id(tensor)]
        if kept._version != version:
            raise CurvatureError(f"{self}: its input of shape {tuple(tensor.shape)} was overwritten later; do not")
        return kept.detach()

    def pull(self, h: Sequence[Tensor | None], change: Callable[[Tensor], Tensor] | None = None) -> Pulled:
        """The call run again on (changed) values, and `h` pulled back through it to each of the `inputs`."""
        leaves: dict[int, Tensor] = {}
        for tensor in tensors_in((self.args, self.kwargs)):
            value = self.value(tensor) if change is None else change(self.value(tensor))
            leaves[id(tensor)] = value.detach().requires_grad_(tensor.requires_grad)
        args, kwargs = mapped((self.args, self.kwargs), lambda tensor: leaves[id(tensor)])
        with torch.enable_grad():
            again = [tensor for tensor in tensors_in(self.function(*args, **kwargs)) if tensor.requires_grad]
        pairs = [(output, part) for output, part in zip(again, h, strict=True) if part is not None]
        outputs, parts = [output for output, _ in pairs], [part for _, part in pairs]
        found = torch.autograd.grad(outputs, [leaves[id(t)] for t in self.inputs], parts, allow_unused=True)
        return [(tensor, part) for tensor, part in zip(self.inputs, found, strict=True) if part is not None]

    def __str__(self) -> str:
        return f"{self.name} in '{self.module}'" if self.module else self.name


class Tape(TorchFunctionMode):
    """Records every call that weights take part in, for the time of a `with` block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._modules: dict[int, str] = {id(m): name or type(m).__name__ for name, m in model.named_modules()}
        self._versions: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        got = {id(tensor): tensor for tensor in tensors_in((args, kwargs))}
        if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in got.values())):
            return func(*args, **kwargs)
        for key, tensor in got.items():
            if tensor._version != self._versions.get(key, tensor._version):
                raise CurvatureError(
                    f"{_name(func)}: a tensor of shape {tuple(tensor.shape)} was changed in place through a view or a "
                    "slice, which the squared recursion cannot follow; use operations that return new tensors"
                )
        before = {key: (tensor, tensor._version) for key, tensor in got.items()}
        name, in_place = _plain(_name(func)), _in_place(func, kwargs)
        if in_place:
            copy = args[0].detach().clone()
            before[id(args[0])] = (copy, copy._version)
        result = func(*args, **kwargs)
        outputs = [tensor for tensor in tensors_in(result) if tensor.requires_grad]
        if outputs:
            self._versions.update({id(tensor): tensor._version for tensor in outputs})
            again = _returning(func, name) if in_place else func
            kwargs = {**kwargs, "inplace": False} if kwargs.get("inplace") else kwargs
            self.steps.append(Step(name, again, tuple(args), kwargs, outputs, before, self._module()))
        return result

    def _module(self) -> str:
        frame = sys._getframe(2)
        while frame.f_back is not None:
            found = self._modules.get(id(frame.f_locals.get("self")))
            if found is not None:
                return found
            frame = frame.f_back
        return ""


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from tensors_in(part)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and dicts with other tensors."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([mapped(part, change) for part in tree])
    if isinstance(tree, Mapping):
        return {key: mapped(part, change) for key, part in tree.items()}
    return tree


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", func))
    return str(func.__self__.__name__) if name == "__get__" else name  # of an attribute such as `Tensor.T`


def _plain(name: str) -> str:
    if name.startswith("__"):
        bare = name.strip("_")
        return bare[1:] if bare in {"iadd", "isub", "imul", "itruediv"} else bare
    return name.rstrip("_")


def _in_place(func: Any, kwargs: Mapping[str, Any]) -> bool:
    name = _name(func)
    dunder = name.startswith("__")
    return bool(kwargs.get("inplace")) or (name.startswith("__i") if dunder else name.endswith("_"))


def _returning(func: Any, name: str) -> Any:
    """The variant of an in-place function that returns a new tensor; the function itself if it has an argument."""
    if not _name(func).endswith("_"):
        return func
    return getattr(Tensor, name, None) or getattr(F, name, func)

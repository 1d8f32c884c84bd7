"""Which number format each quantity of a training run has (SWALP, Yang et al., ICML 2019, arXiv 1904.11943)."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import SupportsIndex, TypeAlias

from torch import nn

from weightbank.errors import PrecisionError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Format, Rounding, format_of
from weightbank.lowprecision.attach import Attached
from weightbank.lowprecision.points import ACTIVATIONS
from weightbank.lowprecision.quantities import QUANTITIES, Formats, Order

Choice: TypeAlias = Format | str | None
"""A format, its short name or repr, or None for the tensor's own precision."""

FIRST = ":first"
"""Stands for the first module with parameters of its own, in the order of `named_modules`."""

LAST = ":last"
"""Stands for the last module with parameters of its own."""


@dataclass(frozen=True)
class Rule:
    """Other formats for some modules; made by `override` and `exempt`."""

    where: str | type[nn.Module]
    changes: tuple[tuple[str, Format | None], ...]

    def matches(self, name: str, module: nn.Module, ends: tuple[str, str]) -> bool:
        """Whether the module of that name is meant; `ends` are the names of the first and the last one with weights."""
        if isinstance(self.where, type):
            return isinstance(module, self.where)
        if self.where in (FIRST, LAST):
            return name == ends[self.where == LAST]
        return fnmatchcase(name, self.where)


def override(where: str | type[nn.Module], **changes: Choice) -> Rule:
    """Other formats for the modules meant by `where`; what is not named stays as it is.

    `where` is a module class, a glob over module names ("features.*"; a parameter belongs to the module that owns it),
    or FIRST or LAST. A rule that gives `activations` or `errors` a format makes the outputs of its modules quantized,
    whatever their class. Raises `PrecisionError` for anything but weights, gradients, momentum, accumulator,
    activations and errors.

    >>> override("classifier.*", weights="bfp8", momentum=None).changes
    (('weights', BlockFloatingPoint(8, block=64)), ('momentum', None))
    """
    unknown = sorted(set(changes) - set(QUANTITIES))
    if unknown or not changes:
        raise PrecisionError(f"override got {', '.join(unknown) or 'no formats'}; there are: {', '.join(QUANTITIES)}")
    return Rule(where, tuple((name, _format(choice)) for name, choice in changes.items()))


def exempt(where: str | type[nn.Module]) -> Rule:
    """Full precision for everything in the modules meant by `where`, as in `override`."""
    return Rule(where, tuple((name, None) for name in QUANTITIES))


@dataclass(frozen=True)
class Precision:
    """Formats of the six quantities of training; None leaves a quantity in the precision it has.

    weights: what forward and backward passes see, Q_W.
    gradients: dL/dw of a batch, before the optimizer adds weight decay, Q_G.
    momentum: what the optimizer carries from step to step in tensors of a weight's shape, Q_M; running squares, such
        as Adam's `exp_avg_sq`, stay full, because one rounded to zero would be divided by.
    accumulator: what updates are added to. The same as `weights` (Algorithm 2) needs no second copy; None is a
        full-precision master copy.
    activations: outputs of activation functions in the forward pass, Q_A.
    errors: dL/da at the same places in the backward pass, Q_E.
    rounding: by default "stochastic", or "nearest" with `straight_through`.
    seed: of stochastic rounding.
    order: of one step. "algorithm2" rounds the weights once; "published" is that of the authors' program, which swaps
        an accumulator in, rounds it, rounds the weights from it, rounds the momentum in the gradients' format, and
        rounds the weights once more.
    rules: exceptions by module, the last that matches wins; see `override` and `exempt`.
    straight_through: the parameters stay as they are, and every forward pass sees them quantized, while gradients pass
        as if they were not (straight-through estimate).
    packed: keep accumulator and momentum as packed codes between steps: same bits, less memory.

    Formats are given as a `Format`, a name such as "bfp8" or a repr. Raises `PrecisionError` for a contradiction,
    `FormatError` for an unknown format.
    """

    weights: Choice = None
    gradients: Choice = None
    momentum: Choice = None
    accumulator: Choice = None
    activations: Choice = None
    errors: Choice = None
    rounding: Rounding | None = None
    seed: int = 0
    order: Order = "algorithm2"
    rules: tuple[Rule, ...] = ()
    straight_through: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        for name in QUANTITIES:
            object.__setattr__(self, name, _format(getattr(self, name)))
        if self.rounding is None:
            object.__setattr__(self, "rounding", "nearest" if self.straight_through else "stochastic")
        if self.order not in ("algorithm2", "published") or self.rounding not in ("nearest", "stochastic"):
            raise PrecisionError(
                f"order={self.order!r}, rounding={self.rounding!r}; wanted 'algorithm2' or 'published', and "
                "'nearest' or 'stochastic'"
            )
        if self.order == "published" and (self.straight_through or self.momentum != self.gradients):
            raise PrecisionError(
                "order='published' rounds the momentum in the gradients' format and keeps low-precision weights: "
                f"momentum={self.momentum!r} must be gradients={self.gradients!r}, straight_through must be False"
            )
        if not isinstance(self.rules, tuple | list) or not all(isinstance(rule, Rule) for rule in self.rules):
            raise PrecisionError(f"rules={self.rules!r}; wanted a tuple of override(...) and exempt(...)")
        object.__setattr__(self, "rules", tuple(self.rules))
        if not isinstance(self.seed, SupportsIndex):  # whole numbers of numpy, too
            raise PrecisionError(f"seed={self.seed!r}; wanted a whole number")

    @classmethod
    def swalp(
        cls,
        bits: int = 8,
        *,
        small_block: bool = True,
        rounding: Rounding = "stochastic",
        seed: int = 0,
        order: Order = "algorithm2",
        rules: tuple[Rule, ...] = (),
        packed: bool = False,
    ) -> "Precision":
        """Block floating point of `bits` bits for all six quantities, as published.

        With `small_block` each output channel (index of the first dimension) of weights, gradients, momentum and
        accumulator has an exponent of its own, vectors have one; otherwise every tensor has one. Activations and
        errors have one exponent per tensor either way.
        """
        whole = BlockFloatingPoint(bits)
        blocks = BlockFloatingPoint(bits, block=ByDimensions()) if small_block else whole
        return cls(
            weights=blocks,
            gradients=blocks,
            momentum=blocks,
            accumulator=blocks,
            activations=whole,
            errors=whole,
            rounding=rounding,
            seed=seed,
            order=order,
            rules=rules,
            packed=packed,
        )

    def attached(self, model: nn.Module, *, functional: bool = False) -> Attached:
        """Put this precision on a model, until the `with` block ends or `detach()` is called; see `Attached`.

        functional: quantize also the results of activation functions that the model calls as functions (F.relu) and
            of its residual sums; modules alone are seen otherwise.

        Raises `PrecisionError` for a rule that matches no module, for a model that is attached already, and for what
        is no model.
        """
        if not isinstance(model, nn.Module):
            raise PrecisionError(f"a precision goes on a torch.nn.Module, not on {model!r}")
        assert self.rounding is not None
        own = self.formats
        return Attached(
            model,
            self.resolve(model),
            rounding=self.rounding,
            seed=self.seed,
            order=self.order,
            straight_through=self.straight_through,
            packed=self.packed,
            functional=Formats(activations=own.activations, errors=own.errors) if functional else None,
        )

    @property
    def formats(self) -> Formats:
        """The six formats, without the rules."""
        return Formats(**{quantity: getattr(self, quantity) for quantity in QUANTITIES})

    def resolve(self, model: nn.Module) -> dict[str, Formats]:
        """The formats of every module by name: activations and errors only where outputs are to be quantized.

        Raises `PrecisionError` for a rule that matches no module.
        """
        modules = dict(model.named_modules())
        weighted = [
            name for name, module in modules.items() if next(module.parameters(recurse=False), None) is not None
        ]
        ends = (weighted[0], weighted[-1]) if weighted else ("", "")
        unused = set(self.rules)
        found: dict[str, Formats] = {}
        for name, module in modules.items():
            chosen = self.formats
            if not isinstance(module, ACTIVATIONS):
                chosen = replace(chosen, activations=None, errors=None)
            for rule in self.rules:
                if rule.matches(name, module, ends):
                    chosen = replace(chosen, **dict(rule.changes))
                    unused.discard(rule)
            found[name] = chosen
        if unused:
            wheres = ", ".join(repr(rule.where) for rule in unused)
            raise PrecisionError(
                f"no module of {type(model).__name__} matches {wheres}; there are: {', '.join(list(modules)[1:9])}, ..."
            )
        return found


def _format(choice: Choice) -> Format | None:
    return None if choice is None else format_of(choice)

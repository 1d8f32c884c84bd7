"""Find out which known loss a task's `loss(output, target)` ends in, and take its outputs from there."""

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from weightbank.curvature.heads import Elementwise, Head, Softmax, loss_itself, sigmoid_entropy, squared_error
from weightbank.errors import CurvatureError
from weightbank.types import Loss

NAMES = "F.cross_entropy, F.nll_loss, F.mse_loss or F.binary_cross_entropy_with_logits"
LOGARITHMIC = 1e-2
"""How far log-probabilities may be from summing to one, in nats; half precision is that coarse."""


def head_of(loss: Loss, output: Any, target: Tensor) -> Head:
    """The outputs that reach the known loss inside `loss`, and their curvature.

    `loss` may be one of the four functions, its `nn` module, or any wrapper that reshapes, picks or transforms the
    model's outputs first and returns that function's value as it is.

    Raises `CurvatureError` for any other loss, for a sum or a multiple of losses, and for a reduction but "mean".
    """
    with _Recorder() as recorder:
        value = loss(output, target)
    name = getattr(loss, "__name__", type(loss).__name__)
    if not recorder.calls:
        raise CurvatureError(
            f"loss '{name}' calls none of {NAMES}, whose curvature is known: use one of them (a function around it may "
            "reshape outputs), or take hutchinson (any twice differentiable loss) or fisher_empirical (any loss)"
        )
    if len(recorder.calls) > 1 or value is not recorder.calls[0][1]:
        called = ", ".join(function.__name__ for function, _, _ in recorder.calls)
        raise CurvatureError(
            f"loss '{name}' calls {called} and returns something else than that value: only a single {NAMES}, returned "
            "as it is, can be handled; take hutchinson or fisher_empirical, or leave the other terms to the training"
        )
    function, _, arguments = recorder.calls[0]
    return _KNOWN[function](name, arguments)


def any_head_of(loss: Loss, output: Any, target: Tensor) -> Head:
    """`head_of`, or for a loss it does not know the loss itself as the only output, one unit per example.

    Raises `CurvatureError` for a known loss with another reduction than "mean".
    """
    try:
        return head_of(loss, output, target)
    except _NoMean:
        raise
    except CurvatureError:
        return loss_itself(loss(output, target), len(target))


def check_head(name: str, head: Head) -> None:
    """Raise `CurvatureError` if outputs do not depend on the weights, labels do, or `nll_loss` got no log p."""
    if not head.z.requires_grad:
        raise CurvatureError(
            f"{name}: the first argument of the loss function does not depend on the weights; wanted loss(output, "
            "target) with outputs first, and a model that does not detach them"
        )
    if isinstance(head, LogSoftmax):
        doubt = float(head.z.detach().logsumexp(min(1, head.z.ndim - 1)).abs().max())
        if not doubt <= LOGARITHMIC:
            raise CurvatureError(
                f"{name}: nll_loss wants log-probabilities, but the outputs' logsumexp is up to {doubt:.3g} from 0; "
                "end the model in log_softmax, or use F.cross_entropy"
            )


class _NoMean(CurvatureError):
    """A known loss that is no mean over its units."""


class LogSoftmax(Softmax):
    """A head that got log-probabilities."""


class _Recorder(TorchFunctionMode):
    """Keeps the arguments of known losses and evaluates them without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Tensor, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _KNOWN:
            return func(*args, **kwargs)
        bound = _SIGNATURES[func].bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        value = func(*(_fixed(a) for a in args), **{key: _fixed(a) for key, a in kwargs.items()})
        self.calls.append((func, value, arguments))
        return value


def _fixed(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument


def _softmax(name: str, arguments: dict[str, Any]) -> Head:
    z, target = _outputs_and_target(name, arguments)
    return Softmax(z, target, arguments["weight"], arguments["ignore_index"], arguments["label_smoothing"])


def _log_softmax(name: str, arguments: dict[str, Any]) -> Head:
    z, target = _outputs_and_target(name, arguments)
    return LogSoftmax(z, target, arguments["weight"], arguments["ignore_index"])


def _squared(name: str, arguments: dict[str, Any]) -> Elementwise:
    z, target = _outputs_and_target(name, arguments)
    if z.shape != target.shape:
        raise CurvatureError(
            f"loss '{name}': outputs of shape {tuple(z.shape)} came with targets of shape {tuple(target.shape)}; "
            "wanted equal shapes, since broadcasting pairs every output with every target"
        )
    return squared_error(z, target, arguments.get("weight"))


def _sigmoid(name: str, arguments: dict[str, Any]) -> Elementwise:
    z, target = _outputs_and_target(name, arguments)
    return sigmoid_entropy(z, target, arguments["weight"], arguments["pos_weight"])


def _outputs_and_target(name: str, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if arguments["size_average"] is not None or arguments["reduce"] is not None or arguments["reduction"] != "mean":
        raise _NoMean(
            f"loss '{name}' has reduction={arguments['reduction']!r}, size_average={arguments['size_average']}, "
            f"reduce={arguments['reduce']}; a task's loss is a mean: wanted reduction='mean' and the other two None"
        )
    if arguments["target"].requires_grad:
        raise CurvatureError(f"loss '{name}': its targets depend on the weights; detach them")
    return arguments["input"], arguments["target"]


_KNOWN: dict[Callable[..., Any], Callable[[str, dict[str, Any]], Head]] = {
    F.cross_entropy: _softmax,
    F.nll_loss: _log_softmax,
    F.mse_loss: _squared,
    F.binary_cross_entropy_with_logits: _sigmoid,
}

_SIGNATURES = {function: inspect.signature(function) for function in _KNOWN}

"""Rules that pull second derivatives back through layers: squared coefficients where a gradient takes them once.

A rule gets a step and, for each of its outputs, h = ∂²L/∂output² (entry by entry, None for outputs nobody used), and
gives h for each input. For y = A x with a constant matrix A it is h_x = (A ⊙ A)ᵀ h.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from weightbank.curvature.tape import Pulled, Step
from weightbank.errors import CurvatureError

Rule = Callable[[Step, Sequence[Tensor | None]], Pulled]


def moved(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """Outputs that copy or add up inputs, each with coefficient 0 or 1: the squares are the coefficients."""
    return step.pull(h)


def bilinear(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """For y = x·W + b: h_x = h·W², h_W = h·x², h_b = h, by the same function on squared factors."""
    return _paired(step).pull(h, torch.square)


def divided(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """For y = x / s with a constant s: h_x = h / s²."""
    divisor = _pair(step)[1]
    if isinstance(divisor, Tensor) and divisor.requires_grad:
        raise CurvatureError(f"{step}: no squared rule for division by something that depends on weights")
    return _paired(step).pull(h, torch.square)


def added(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """For y = ±x ± α z: both get h, times α² for z."""
    alpha = step.kwargs.get("alpha", 1)
    return replace(step, function=torch.add, args=_pair(step), kwargs={"alpha": alpha**2}).pull(h)


def elementwise(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """For y = f(x) entry by entry: h f'(x)². The part f''(x) ∂L/∂y, zero for ReLU and maybe negative, is left out."""
    (only,) = h
    assert only is not None
    if len(step.inputs) != 1:
        raise CurvatureError(f"{step}: no squared rule for an activation with weights of its own")
    return [(tensor, slope.square() * only) for tensor, slope in step.pull([torch.ones_like(only)])]


def averaged(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """For y_j = a_j Σ over a window: h_x = Σ_j a_j² h_j, so 1/n² of h for a window of n, not 1/n."""
    (only,) = h
    assert only is not None
    (tensor,) = step.inputs
    return step.pull([only * _window_weight(step, step.value(tensor), only)])


def normalized(step: Step, h: Sequence[Tensor | None]) -> Pulled:
    """BatchNorm with fixed statistics, y = γ (x - μ)/σ + b: h_x = h γ²/σ², h_γ = Σ h ((x - μ)/σ)², h_b = Σ h."""
    (only,) = h
    assert only is not None
    bound = inspect.signature(F.batch_norm).bind(*step.args, **step.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    x, gamma = given["input"], given["weight"]
    if given["training"] or given["running_var"] is None:
        raise CurvatureError(f"{step}: no squared rule for normalization by the batch's own statistics")
    shape = (1, -1, *(1,) * (x.ndim - 2))
    rest = [axis for axis in range(x.ndim) if axis != 1]
    precision = 1 / (given["running_var"] + given["eps"])
    scale = precision if gamma is None else precision * step.value(gamma).square()
    pulled = [(x, only * scale.view(shape))] if x.requires_grad else []
    if gamma is not None and gamma.requires_grad:
        centred = step.value(x) - given["running_mean"].view(shape)
        pulled.append((gamma, (only * centred.square()).sum(rest) * precision))
    if given["bias"] is not None and given["bias"].requires_grad:
        pulled.append((given["bias"], only.sum(rest)))
    return pulled


def _pair(step: Step) -> tuple[Any, Any]:
    """The two operands of a step, the second 0 if there is none; not one tensor twice."""
    first = step.args[0]
    second = step.args[1] if len(step.args) > 1 else step.kwargs.get("other", 0)
    if isinstance(first, Tensor) and first is second:
        raise CurvatureError(f"{step}: no squared rule for a tensor combined with itself")
    return first, second


def _paired(step: Step) -> Step:
    """The step with both factors in front, and squared if they are plain numbers."""
    if step.name not in _SCALES:
        return step
    factors = (factor**2 if isinstance(factor, (int, float)) else factor for factor in _pair(step))
    kwargs = {key: value for key, value in step.kwargs.items() if key != "other"}
    return replace(step, args=(*factors, *step.args[2:]), kwargs=kwargs)


def _window_weight(step: Step, x: Tensor, y: Tensor) -> Tensor | float:
    """a_j of every output y_j of an average."""
    if step.name == "mean":
        return y.numel() / x.numel()
    if step.name.startswith("adaptive"):
        dimensions = int(step.name[-2])
        sizes = [_adaptive_sizes(x.shape[-k], y.shape[-k]).to(y) for k in range(dimensions, 0, -1)]
        count = sizes[0]
        for size in sizes[1:]:
            count = count[..., None] * size
        return 1 / count
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given: dict[str, Any] = dict(zip(names, step.args, strict=False)) | step.kwargs
    given["input"] = torch.ones_like(x)
    if step.name == "avg_pool1d":
        for key, neutral in (("kernel_size", 1), ("stride", 1), ("padding", 0)):
            if given.get(key) not in (None, ()):
                given[key] = (neutral, given[key] if isinstance(given[key], int) else given[key][0])
        given["input"] = given["input"].unsqueeze(-2)
        mean, total = F.avg_pool2d(**given), F.avg_pool2d(**{**given, "divisor_override": 1})
        return (mean / total).squeeze(-2)
    mean, total = step.function(**given), step.function(**{**given, "divisor_override": 1})
    return torch.as_tensor(mean / total)


def _adaptive_sizes(size: int, outputs: int) -> Tensor:
    """How many of `size` inputs each of `outputs` windows covers: from ⌊j·size/outputs⌋ to ⌈(j+1)·size/outputs⌉."""
    return torch.tensor([math.ceil((j + 1) * size / outputs) - j * size // outputs for j in range(outputs)])


_SCALES = {"mul", "multiply", "div", "divide", "true_divide", "matmul", "mm", "bmm", "mv", "rmatmul"}

_RULES: dict[Rule, str] = {
    moved: """flatten unflatten view view_as reshape reshape_as permute transpose t T mT movedim swapaxes squeeze
        unsqueeze expand expand_as contiguous clone to type_as float double chunk split tensor_split unbind narrow
        select index_select getitem cat concat concatenate stack flip roll sum pixel_shuffle pixel_unshuffle
        channel_shuffle embedding dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
        max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d""",
    bilinear: """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d mul multiply matmul mm
        bmm mv rmatmul""",
    divided: "div divide true_divide",
    added: "add sub subtract rsub radd neg negative",
    elementwise: """relu relu6 leaky_relu hardtanh threshold clamp clamp_min elu selu celu gelu silu mish softplus tanh
        sigmoid logsigmoid hardswish hardsigmoid softsign tanhshrink softshrink hardshrink abs""",
    averaged: """mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
        adaptive_avg_pool3d""",
    normalized: "batch_norm",
}

RULES: dict[str, Rule] = {name: rule for rule, names in _RULES.items() for name in names.split()}
"""Function name -> rule."""

"""Second derivatives by one backward recursion (Becker & LeCun 1989), the sensitivity of SWIM (arXiv 2202.08395)."""

import torch
from torch import Tensor

from weightbank.curvature.heads import Head, Softmax
from weightbank.curvature.held import Held, holding
from weightbank.curvature.reading import batches
from weightbank.curvature.rules import RULES, moved
from weightbank.curvature.tape import Step, Tape
from weightbank.errors import CurvatureError
from weightbank.progress import progress
from weightbank.task import Task
from weightbank.types import Flat, Inputs


def backprop(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Flat:
    """An approximation to the Hessian diagonal, shape (P,), in loss per example per squared weight, without randomness.

    Starts from h = ∂²loss/∂z² per output (p (1 - p) for softmax cross-entropy, 2 for squared errors) and pulls it back
    layer by layer with squared coefficients: for z = W x, h_W = h_z xᵀ² and h_x = (W²)ᵀ h_z; both branches of a sum get
    h; averages over n pass h / n²; BatchNorm passes h γ²/σ²; ReLU and max-pooling pass h where they pass gradients.
    Smooth activations pass h f'², the Gauss-Newton part.

    Exact for one layer of weights. Deeper down it leaves out that outputs of a layer move together, and a weight used
    at many positions gets the sum over positions of single contributions: convolutions far from the output come out
    much too small against later layers. It is here for comparison with published results; `ggn_sampled` costs less
    and is unbiased. Costs about two forward and backward passes and the memory of all activations.

    Works on modules as they are: Linear, convolutions (transposed, too), BatchNorm, ReLU and other elementwise
    activations, pooling, embeddings, dropout, reshaping, sums, products, concatenation.

    Args:
        task: the model with its loss and training data.
        images: the first so many training examples; None (or more than there are) takes all.
        batch_size: the most examples at once; larger loader batches are cut. The result does not depend on it.
        generator: seeds the order in which a shuffling loader hands out examples, which matters with `images` only;
            None is a fresh one with seed 0.

    Raises:
        CurvatureError: for a layer without a squared rule (by name), a loss without known curvature, random outputs,
            augmented training data.
        DataError: for empty data and arguments out of range.
        NonFiniteError: for NaN or infinite outputs or scores.
    """
    units = 0.0
    with holding(task, generator) as held, progress(f"{task.name}: curvature", images) as bar:
        total = held.zeros()
        for number, (x, y) in enumerate(batches(task, images, batch_size)):
            if number == 0:
                held.examine(x, y)
            units += _add_recursion(held, x, y, total)
            bar.advance(len(y))
        return held.mean(total, units)


def _add_recursion(held: Held, x: Inputs, y: Tensor, total: Flat) -> float:
    """Add one batch's second derivatives, and return the sum of its units' weights."""
    with Tape(held.task.model) as tape:
        head = held.checked_head(x, y)
    found = _swept(tape, head, held.task.name)
    for name, view in held.views(total).items():
        h = found.pop(id(held.leaves[name]), None)
        if h is not None:
            view.add_(h)
    if found:
        shapes = ", ".join(str(tuple(h.shape)) for h in list(found.values())[:3])
        raise CurvatureError(
            f"{held.task.name}: results of shape {shapes} came from an operation that the squared recursion cannot see "
            "(a custom autograd.Function or a compiled one); take ggn_sampled"
        )
    return float(head.total)


def _swept(tape: Tape, head: Head, task: str) -> dict[int, Tensor]:
    """What h is for everything that no recorded step produced, by identity: weights, if all went well."""
    h = {id(head.z): head.diagonal()}
    only_moved = True
    while tape.steps:
        step = tape.steps.pop()
        parts = [h.pop(id(output), None) for output in step.outputs]
        if all(part is None for part in parts):
            continue
        pulled = _pull(step, parts, isinstance(head, Softmax) and only_moved, task)
        only_moved = only_moved and RULES.get(step.name) is moved
        for tensor, part in pulled:
            known = h.get(id(tensor))
            h[id(tensor)] = part if known is None else known + part
    return h


def _pull(step: Step, parts: list[Tensor | None], at_the_end: bool, task: str) -> list[tuple[Tensor, Tensor]]:
    if step.name == "log_softmax" and at_the_end:  # log-probabilities are logits too: the loss sees no difference
        return [(tensor, part) for tensor, part in zip(step.inputs, parts, strict=True) if part is not None]
    if step.name not in RULES:
        raise CurvatureError(
            f"{task}: no squared rule for {step} (inputs {', '.join(str(tuple(t.shape)) for t in step.inputs)}); take "
            "ggn_sampled, which works on any model"
        )
    return RULES[step.name](step, parts)

"""The Hessian diagonal from products with random sign vectors (Hutchinson 1990; Bekas, Kokiopoulou, Saad 2007)."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightbank.curvature.heads import random_signs
from weightbank.curvature.held import Held, holding
from weightbank.curvature.losses import any_head_of
from weightbank.curvature.reading import batches
from weightbank.errors import DataError
from weightbank.progress import progress
from weightbank.task import Task
from weightbank.types import Flat, Inputs


def hutchinson(
    task: Task,
    *,
    images: int | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    probes: int = 1,
) -> Flat:
    """The mean of v ⊙ ∇²L v over random signs v, shape (P,): unbiased for the diagonal of the mean loss's Hessian.

    Any twice differentiable loss and model; scores may be negative. Each batch takes `probes` vectors of its own and
    costs one forward, one backward and `probes` second backward passes, with the memory of a differentiable gradient.
    The variance of score i is Σ_{j≠i} H_ij² / probes for a single batch, so it ranks weights poorly: take `ggn_sampled`
    for that, and this where the sign or the part beyond Gauss-Newton counts.

    Args:
        task: the model with its loss and training data.
        images: the first so many training examples; None (or more than there are) takes all.
        batch_size: the most examples at once; larger loader batches are cut.
        generator: the source of the signs; None is a fresh one with seed 0, so a repeated call gives the same.
        probes: sign vectors per batch.

    Raises:
        CurvatureError: for random outputs and augmented training data.
        DataError: for empty data and arguments out of range.
        NonFiniteError: for NaN or infinite outputs or scores.
    """
    if probes < 1:
        raise DataError(f"probes={probes}; wanted at least 1")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    units = 0.0
    with holding(task, generator, any_head_of) as held, progress(f"{task.name}: Hessian diagonal", images) as bar:
        total = held.zeros()
        for number, (x, y) in enumerate(batches(task, images, batch_size)):
            if number == 0:
                held.examine(x, y)
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
                units += _add_products(held, x, y, probes, generator, total)
            bar.advance(len(y))
        return held.mean(total, units)


def _add_products(held: Held, x: Inputs, y: Tensor, probes: int, generator: torch.Generator, total: Flat) -> float:
    """Add the mean of v ⊙ ∇²(summed loss) v, and return the sum of the units' weights."""
    output = held.output(x)
    units = float(held.head_at(output, y).total)
    if units == 0:
        return 0.0
    leaves = list(held.leaves.values())
    views = list(held.views(total).values())
    loss = held.task.loss(output, y) * units
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    curved = [gradient for gradient in gradients if gradient is not None and gradient.requires_grad]
    if not curved:
        return units
    for probe in range(probes):
        signs = [random_signs(leaf, generator) for leaf in leaves]
        along = [
            sign
            for sign, gradient in zip(signs, gradients, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        products = torch.autograd.grad(curved, leaves, along, retain_graph=probe + 1 < probes, allow_unused=True)
        for view, sign, product in zip(views, signs, products, strict=True):
            if product is not None:
                view.addcmul_(sign.to(view), product.to(view), value=1 / probes)
    return units

"""The last step of a network: outputs z, and the Hessian H of the summed loss with respect to them.

Every loss here is a mean over units (labelled positions of a classification, numbers of a regression), each with a
weight; `total` is the sum of these weights, so `total` times the loss is the sum over units, whatever the batch. H is
that sum's Hessian in z. It is block-diagonal over units and needs no labels beyond their weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Head(Protocol):
    """Outputs of one batch with what all estimators need of H; every tensor returned has the shape of `z`."""

    @property
    def z(self) -> Tensor:
        """The outputs, as a differentiable function of the weights."""
        ...

    @property
    def total(self) -> Tensor:
        """The sum of the units' weights, a scalar."""
        ...

    def diagonal(self) -> Tensor:
        """The diagonal of H."""
        ...

    def columns(self) -> Iterator[Tensor]:
        """The columns s of a factor S with S Sᵀ = H, as many as `z` has numbers."""
        ...

    def signs(self, generator: torch.Generator) -> Tensor:
        """S ε with random signs ε, so with covariance H."""
        ...

    def labels(self, generator: torch.Generator) -> Tensor:
        """The gradient of the summed loss at labels drawn from the model's own prediction: covariance H again."""
        ...

    def observed(self) -> Tensor:
        """The gradient of the summed loss at the labels of the data."""
        ...

    def divergence(self, z: Tensor) -> Tensor:
        """By how much the summed loss at outputs `z` exceeds that at the head's own, under its own prediction.

        A scalar, differentiable in `z`, zero at the head's own outputs, where its Hessian is H. No labels matter.
        """
        ...


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of softmax(z): per position H = a (diag p - p pᵀ), with the position's weight a.

    Serves log-probabilities and `nll_loss` as well, since softmax(log p) = p.

    z: (N, C, ...) or (C,); target: class indices (N, ...), or probabilities of the shape of z.
    class_weight, ignore_index, smoothing: as in `torch.nn.functional.cross_entropy`.
    """

    z: Float[Tensor, "*S"]
    target: Tensor
    class_weight: Float[Tensor, " C"] | None = None
    ignore_index: int = -100
    smoothing: float = 0.0

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.z.shape[min(1, self.z.ndim - 1)]

    @property
    def soft(self) -> bool:
        """Whether targets are probabilities, not indices."""
        return self.target.is_floating_point()

    @property
    def total(self) -> Float[Tensor, ""]:
        """Labelled positions, each counted with the weight of its class; all positions if targets are probabilities."""
        if self.soft:
            return self.z.new_tensor(self.z.numel() / self.classes)
        labels, counted = self._labels()
        return (counted if self.class_weight is None else self.class_weight[labels] * counted).sum().to(self.z.dtype)

    def diagonal(self) -> Float[Tensor, "*S"]:
        """Per position a p (1 - p)."""
        p = self._p()
        return self._like_z(self._mass()[:, None] * p * (1 - p))

    def columns(self) -> Iterator[Float[Tensor, "*S"]]:
        """Per position and class c: √(a p_c) (e_c - p)."""
        p = self._p()
        root = (self._mass()[:, None] * p).sqrt()
        classes = torch.eye(self.classes, dtype=p.dtype, device=p.device)
        positions = torch.eye(len(p), dtype=p.dtype, device=p.device)
        for row, position in enumerate(positions):
            for c in range(self.classes):
                yield self._like_z(position[:, None] * root[row, c] * (classes[c] - p))

    def signs(self, generator: torch.Generator) -> Float[Tensor, "*S"]:
        """Σ_c ε_c √(a p_c) (e_c - p) per position."""
        p = self._p()
        s = p.sqrt().mul_(random_signs(p, generator))
        s.addcmul_(p, s.sum(-1, keepdim=True), value=-1)
        return self._like_z(s.mul_(self._mass().sqrt()[:, None]))

    def labels(self, generator: torch.Generator) -> Float[Tensor, "*S"]:
        """√a (p - e_ŷ) with ŷ ~ p."""
        p = self._p()
        cumulative = p.cumsum(-1)
        u = torch.rand(len(p), 1, dtype=p.dtype, device=generator.device, generator=generator).to(p.device)
        drawn = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp_(max=self.classes - 1)
        r = p.scatter_add_(-1, drawn, p.new_tensor(-1.0).expand(drawn.shape))
        return self._like_z(r.mul_(self._mass().sqrt()[:, None]))

    def observed(self) -> Float[Tensor, "*S"]:
        """√a (p - q) with the target distribution q: without class weights the gradient of the summed loss."""
        mass = self._mass()[:, None]
        q = self._target_mass() / torch.where(mass > 0, mass, 1)
        return self._like_z(mass.sqrt() * (self._p() - q))

    def divergence(self, z: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
        """Σ a KL(p ‖ softmax(z)) over positions; classes of probability zero count nothing."""
        own, other = (self._log_p(self._rows(outputs)) for outputs in (self.z.detach(), z))
        p = own.exp()
        return (self._mass()[:, None] * p * (own - other).masked_fill(p == 0, 0)).sum()

    def _rows(self, tensor: Float[Tensor, "*S"]) -> Float[Tensor, "R C"]:
        return tensor.movedim(min(1, tensor.ndim - 1), -1).reshape(-1, self.classes)

    def _like_z(self, rows: Float[Tensor, "R C"]) -> Float[Tensor, "*S"]:
        axis = min(1, self.z.ndim - 1)
        shape = (*self.z.shape[:axis], *self.z.shape[axis + 1 :], self.classes)
        return rows.to(self.z.dtype).reshape(shape).movedim(-1, axis)

    def _p(self) -> Float[Tensor, "R C"]:
        rows = self._rows(self.z.detach())
        return rows.to(torch.promote_types(rows.dtype, torch.float32)).softmax(-1)

    def _log_p(self, rows: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
        return rows.to(torch.promote_types(rows.dtype, torch.float32)).log_softmax(-1)

    def _labels(self) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        labels = self.target.reshape(-1).long()
        counted = labels != self.ignore_index
        return torch.where(counted, labels, 0), counted

    def _mass(self) -> Float[Tensor, " R"]:
        """The weight a of each position's Hessian: the mass of its smoothed and weighted target."""
        weight = self.class_weight
        if self.soft:
            target = self._rows(self.target)
            if weight is None:
                return (1 - self.smoothing) * target.sum(-1) + self.smoothing
            return (1 - self.smoothing) * (target * weight).sum(-1) + self.smoothing * weight.mean()
        labels, counted = self._labels()
        if weight is None:
            return counted.to(torch.promote_types(self.z.dtype, torch.float32))
        return counted * ((1 - self.smoothing) * weight[labels] + self.smoothing * weight.mean())

    def _target_mass(self) -> Float[Tensor, "R C"]:
        if self.soft:
            target, counted = self._rows(self.target), torch.ones((), device=self.target.device)
        else:
            labels, valid = self._labels()
            target = (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(self.z.dtype)
            counted = valid[:, None].to(self.z.dtype)
        smooth = (1 - self.smoothing) * target + self.smoothing / self.classes
        return smooth * counted if self.class_weight is None else smooth * counted * self.class_weight


@dataclass(frozen=True)
class Elementwise:
    """A loss that is a sum over single outputs, H = diag(curvature).

    z, curvature, residual: outputs, second derivatives, and first derivatives at the labels of the data.
    total: the sum of the units' weights. sample: draws a gradient at labels of the model's own.
    excess: of the summed loss at other outputs, under the prediction at these.
    """

    z: Float[Tensor, "*S"]
    curvature: Float[Tensor, "*S"]
    residual: Float[Tensor, "*S"]
    total: Float[Tensor, ""]
    sample: Callable[[torch.Generator], Tensor] = field(repr=False)
    excess: Callable[[Tensor], Tensor] = field(repr=False)

    def diagonal(self) -> Float[Tensor, "*S"]:
        """The curvature itself."""
        return self.curvature

    def columns(self) -> Iterator[Float[Tensor, "*S"]]:
        """√h_k e_k."""
        root = self.curvature.sqrt()
        for unit in torch.eye(self.z.numel(), dtype=root.dtype, device=root.device):
            yield unit.reshape(root.shape) * root

    def signs(self, generator: torch.Generator) -> Float[Tensor, "*S"]:
        """±√h."""
        return self.curvature.sqrt() * random_signs(self.curvature, generator)

    def labels(self, generator: torch.Generator) -> Float[Tensor, "*S"]:
        """As `sample` draws it."""
        return self.sample(generator)

    def observed(self) -> Float[Tensor, "*S"]:
        """The residual itself."""
        return self.residual

    def divergence(self, z: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
        """As `excess` has it."""
        return self.excess(z)


def squared_error(
    z: Float[Tensor, "*S"], target: Float[Tensor, "*S"], weight: Float[Tensor, "*S"] | None = None
) -> Elementwise:
    """(z - y)² per number: h = 2, the Fisher information of a normal law with variance ½ around z."""
    fixed = z.detach()
    curvature = torch.full_like(fixed, 2.0) if weight is None else 2.0 * weight.to(fixed.dtype).expand_as(fixed)
    root = (curvature / 2).sqrt()

    def sample(generator: torch.Generator) -> Tensor:
        normal = torch.randn(fixed.shape, dtype=fixed.dtype, device=generator.device, generator=generator)
        return curvature.sqrt() * normal.to(fixed.device)

    total = fixed.new_tensor(fixed.numel()) if weight is None else weight.sum().to(fixed.dtype)

    def excess(other: Tensor) -> Tensor:
        return (curvature / 2 * (other - fixed).square()).sum()

    return Elementwise(z, curvature, 2 * root * (fixed - target), total, sample, excess)


def sigmoid_entropy(
    z: Float[Tensor, "*S"],
    target: Float[Tensor, "*S"],
    weight: Tensor | None = None,
    positive_weight: Tensor | None = None,
) -> Elementwise:
    """Binary cross-entropy of σ(z) per number: h = a σ (1 - σ), a = weight (1 + (positive_weight - 1) y)."""
    fixed = z.detach()
    p = fixed.sigmoid()
    mass = torch.ones_like(p)
    if weight is not None:
        mass = mass * weight
    if positive_weight is not None:
        mass = mass * (1 + (positive_weight - 1) * target)
    root = mass.sqrt()

    def sample(generator: torch.Generator) -> Tensor:
        u = torch.rand(p.shape, dtype=p.dtype, device=generator.device, generator=generator).to(p.device)
        return root * (p - (u < p).to(p.dtype))

    def excess(other: Tensor) -> Tensor:
        cost = F.binary_cross_entropy_with_logits(other, p, mass, reduction="sum")
        return cost - F.binary_cross_entropy_with_logits(fixed, p, mass, reduction="sum")

    return Elementwise(z, mass * p * (1 - p), root * (p - target), fixed.new_tensor(fixed.numel()), sample, excess)


def loss_itself(value: Float[Tensor, ""], examples: int) -> Elementwise:
    """A mean loss of any kind as its own output z = examples · loss: the sum is linear in it, slope 1, H = 0."""
    z = value * examples
    fixed = z.detach()
    zero = torch.zeros_like(fixed)
    return Elementwise(z, zero, zero + 1, zero + examples, lambda generator: zero, lambda other: other - fixed)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent ±1 with the shape, dtype and device of `like`."""
    bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device, dtype=torch.int8)
    return bits.to(like.device, like.dtype).mul_(2).sub_(1)

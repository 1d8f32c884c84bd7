"""The law over weights that every part of the library speaks: mean, variance, draws."""

from collections.abc import Iterator
from numbers import Integral
from typing import Protocol, runtime_checkable

import torch

from weightbank.errors import LayoutError, StoreError
from weightbank.layout import Layout
from weightbank.task import Task
from weightbank.types import Draws, Flat


@runtime_checkable
class WeightDistribution(Protocol):
    """A probability law over the flat weight vector θ of shape (P,)."""

    @property
    def layout(self) -> Layout:
        """Which weight stands where."""
        ...

    def mean(self) -> Flat:
        """E[θ], shape (P,)."""
        ...

    def variance(self) -> Flat:
        """The marginal variances E[(θ - E θ)²], shape (P,), in squared weight units."""
        ...

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` independent draws, shape (S, P); one pass over stored rows per call, not per draw."""
        ...


@runtime_checkable
class StreamedDistribution(WeightDistribution, Protocol):
    """A law that can also hand out its draws one by one in bounded memory."""

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The rows of `sample(count, generator=...)`, one at a time, for an equally seeded generator.

        A yielded tensor is valid until the next one is asked for.
        """
        ...


def seed_of(generator: torch.Generator | None) -> int:
    """One 62-bit seed drawn from `generator` (torch's default one if None); the only randomness a law consumes."""
    return int(torch.randint(0, 2**62, (1,), generator=generator).item())


def check_count(count: int) -> int:
    """`count` itself, or `StoreError` unless it is a number of draws."""
    if not isinstance(count, Integral) or count < 0:
        raise StoreError(f"{count!r} draws asked for; wanted a whole number of 0 or more")
    return count


def each_draw(law: WeightDistribution, count: int, generator: torch.Generator | None = None) -> Iterator[Flat]:
    """`count` draws of any law one at a time: streamed where the law can, else all at once."""
    if isinstance(law, StreamedDistribution):
        return law.draws(count, generator=generator)
    return iter(law.sample(count, generator=generator).unbind(0))


def check_over(law: WeightDistribution, task: Task) -> None:
    """Raise `LayoutError` unless `law` is a law over the weights of `task`."""
    if not isinstance(law, WeightDistribution):
        raise LayoutError(
            f"a {type(law).__name__} came; wanted a law with layout, mean(), variance() and sample(), such as "
            "moments.gaussian(), or one flat vector of weights"
        )
    if law.layout.fingerprint != task.layout.fingerprint:
        raise LayoutError(
            f"the law is over {law.layout.size:,} weights ({', '.join(law.layout.names[:4])}, ...), task '{task.name}' "
            f"over {task.layout.size:,} ({', '.join(task.layout.names[:4])}, ...), of other names or shapes; build it "
            "from task.layout"
        )

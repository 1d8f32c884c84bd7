"""A measured number with its standard error and the count behind it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """`mean ± stderr` over `n` draws, examples or runs; `stderr` is None where one number cannot tell.

    >>> print(Estimate(0.98123, 0.00042, 30))
    0.9812 ± 0.0004 (n=30)
    """

    mean: float
    stderr: float | None
    n: int
    values: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, values: Iterable[float]) -> "Estimate":
        """The mean of single measurements, all kept in `values`; stderr = s / √n with the unbiased s, None for one.

        Raises `ValueError` if there are none.

        >>> print(Estimate.of([1.0, 2.0, 3.0, 4.0]))
        2.5 ± 0.6 (n=4)
        """
        kept = tuple(float(value) for value in values)
        n = len(kept)
        if n == 0:
            raise ValueError("no values came; an estimate needs at least one")
        mean = math.fsum(kept) / n
        if n == 1:
            return cls(mean, None, 1, kept)
        variance = math.fsum((value - mean) ** 2 for value in kept) / (n - 1)
        return cls(mean, math.sqrt(variance / n), n, kept)

    @classmethod
    def over(cls, examples: Float[Tensor, " N"]) -> "Estimate":
        """The mean over N independent examples and its standard error; the examples are not kept."""
        examples = examples.double()
        n = len(examples)
        if n == 0:
            raise ValueError("no examples came; an estimate needs at least one")
        stderr = float(examples.std()) / math.sqrt(n) if n > 1 else None
        return cls(float(examples.mean()), stderr, n)

    @property
    def min(self) -> float:
        """The smallest single value."""
        return min(self._kept())

    @property
    def max(self) -> float:
        """The largest single value."""
        return max(self._kept())

    def quantile(self, q: float) -> float:
        """The q-quantile (0 ≤ q ≤ 1) of the single values, linear between neighbours.

        >>> Estimate.of([1.0, 2.0, 3.0, 4.0]).quantile(0.5)
        2.5
        """
        return float(torch.tensor(self._kept(), dtype=torch.float64).quantile(q))

    @property
    def text(self) -> str:
        """`mean ± stderr` with as many digits as the standard error allows, without the count."""
        if self.stderr is None or not math.isfinite(self.stderr):
            return f"{self.mean:.4g}"
        if self.stderr == 0:
            return f"{self.mean:.4g} ± 0"
        largest = max(abs(self.mean), self.stderr)
        if math.isfinite(largest) and not 1e-3 <= largest < 1e6:
            power = math.floor(math.log10(largest))
            scale = 10.0**-power
            return f"({_rounded(self.mean * scale, self.stderr * scale)})e{power:+03d}"
        return _rounded(self.mean, self.stderr)

    def to_dict(self) -> dict[str, float | int | list[float] | None]:
        """Plain numbers for JSON; `values`, `min` and `max` only where single values were kept."""
        plain: dict[str, float | int | list[float] | None] = {"mean": self.mean, "stderr": self.stderr, "n": self.n}
        if self.values:
            plain |= {"min": self.min, "max": self.max, "values": list(self.values)}
        return plain

    def __str__(self) -> str:
        return f"{self.text} (n={self.n})"

    def __float__(self) -> float:
        return self.mean

    def _kept(self) -> tuple[float, ...]:
        if not self.values:
            raise ValueError(f"this mean over n={self.n} kept no single values; only estimates over draws do")
        return self.values


def _rounded(mean: float, stderr: float) -> str:
    """One significant digit of the standard error, two if it starts with a 1; six decimals at most."""
    power = math.floor(math.log10(stderr))
    leading = round(stderr / 10.0**power, 6)
    decimals = min(6, max(0, -power + (1 if leading < 2 else 0)))
    return f"{mean:.{decimals}f} ± {stderr:.{decimals}f}"

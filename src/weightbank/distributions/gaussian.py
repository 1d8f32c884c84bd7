"""A diagonal plus low-rank Gaussian law over θ whose factor stays on disk (SWAG, arXiv 1902.02476, Algorithm 1)."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.distributions.distribution import check_count, seed_of
from weightbank.distributions.factor import TILE, Factor, Scaled, check_square
from weightbank.distributions.sources import FileRows, TensorRows
from weightbank.errors import CorruptError, LayoutError, StoreError
from weightbank.layout import Layout
from weightbank.store.arrays import ArrayFile, ArrayWriter
from weightbank.types import Draws, Flat

_GROUP, _CHUNK, _DRAW_BYTES = 16, 256, 256 << 20
_KIND = "weightbank gaussian 1"


@dataclass(frozen=True, eq=False)
class Gaussian:
    """θ ~ N(mean, diag(diagonal) + U'U), U = `factor` of shape (R, P) or None.

    `mean` and `diagonal` are float32 vectors in memory; U is read in blocks of columns whenever it is needed, so memory
    does not grow with R. Nothing here is changed by any method.
    """

    layout: Layout
    center: Flat
    diagonal: Flat
    factor: Factor | None = None

    def __post_init__(self) -> None:
        self.layout.check(self.center)
        self.layout.check(self.diagonal)
        if self.factor is not None and self.factor.size != self.layout.size:
            raise LayoutError(f"a factor over {self.factor.size} weights came; this layout has {self.layout.size}")

    @property
    def rank(self) -> int:
        """R, the rows of the factor."""
        return 0 if self.factor is None else self.factor.rank

    def mean(self) -> Flat:
        """E[θ], shape (P,)."""
        return self.center

    def variance(self) -> Flat:
        """diag(Σ) = diagonal + Σ_r U_r², shape (P,); one pass over the stored rows, summed in float64."""
        total = self.diagonal.to(torch.float64)
        if self.factor is not None:
            for columns, block in self.factor.blocks():
                total[columns] += block.square_().sum(0, dtype=torch.float64)
        return total.to(torch.float32)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Draws:
        """`count` draws, shape (S, P), in one pass: θ = mean + diagonal^½ z₁ + U' z₂, z ~ N(0, I).

        Memory: the result and about 40 MB. The draws depend on the generator's state alone: not on blocks, threads of
        the caller, or how many are asked for at once (the first k of `sample(n)` are `sample(k)`).
        """
        out = torch.empty(check_count(count), self.layout.size)
        if count:
            self._fill(out, 0, seed_of(generator))
        return out

    def draws(self, count: int, *, generator: torch.Generator | None = None) -> Iterator[Flat]:
        """The rows of `sample`, one at a time, in at most 256 MB or one group of 16 draws; a pass per group."""
        check_count(count)
        seed = seed_of(generator)
        fit = max(1, _DRAW_BYTES // (4 * self.layout.size * _GROUP)) * _GROUP
        buffer = torch.empty(min(fit, count), self.layout.size)
        for first in range(0, count, fit):
            out = buffer[: count - first]
            self._fill(out, first, seed)
            yield from out

    def log_prob(self, theta: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch"]:
        """Log N(θ; mean, Σ) in float64, by Woodbury's identity: one pass over the rows, an (R, R) Cholesky factor.

        With a = diagonal, r = θ - mean, V = U a^-½: quad = |a^-½ r|² - b' (I + V V')⁻¹ b, b = V a^-½ r. Raises
        `StoreError` where a variance in the diagonal is zero: there the law has no density; `LayoutError` for vectors
        of another length.
        """
        if theta.ndim == 0 or theta.shape[-1] != self.layout.size:
            raise LayoutError(f"weights of shape {tuple(theta.shape)} came; wanted (..., {self.layout.size})")
        flat = theta.reshape(-1, self.layout.size).to(torch.float64)
        inverse = self._inverse_root()
        residual = (flat - self.center.to(torch.float64)) * inverse
        quad = residual.square().sum(1)
        inner, products = self._whitened(residual)
        if products is not None:
            half = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), products.T, upper=False)
            quad = quad - half.square().sum(0)
        log = -0.5 * (quad + self._logdet(inner, inverse) + self.layout.size * math.log(2 * math.pi))
        shaped: Tensor = log.reshape(theta.shape[:-1])
        return shaped

    def logdet(self) -> float:
        """Log det Σ in float64: Σ log a + log det(I + U a⁻¹ U')."""
        return self._logdet(self._whitened(None)[0], self._inverse_root())

    def spectrum(self) -> Float[Tensor, " R"]:
        """Eigenvalues of the low-rank part U'U, largest first, float64; one pass."""
        if self.factor is None:
            return torch.zeros(0, dtype=torch.float64)
        values: Tensor = torch.linalg.eigvalsh(self.factor.gram(torch.float32))
        return values.clamp(min=0).flip(0)

    def effective_rank(self) -> float:
        """The participation ratio (Σλ)² / Σλ² of the low-rank part's eigenvalues: how many directions it really has."""
        spectrum = self.spectrum()
        squares = float(spectrum.square().sum())
        return float(spectrum.sum()) ** 2 / squares if squares > 0 else 0.0

    def compress(self, rank: int) -> "Gaussian":
        """The same law with U replaced by its best approximation of `rank` rows, held in memory (4 rank P bytes).

        U_r = V_r' U with V_r the leading eigenvectors of U U'; then |U'U - U_r'U_r|₂ is the next eigenvalue
        (Eckart-Young). Two passes.
        """
        if self.factor is None or rank >= self.rank:
            return self
        if rank < 1:
            raise StoreError(f"rank {rank} asked for; wanted 1 to {self.rank}")
        vectors = torch.linalg.eigh(self.factor.gram(torch.float32)).eigenvectors[:, -rank:].flip(1).T
        rows = torch.empty(rank, self.layout.size)
        for columns, block in self.factor.times(vectors).blocks():
            rows[:, columns] = block
        return self._with(TensorRows(rows))

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write mean, diagonal (float32) and U (in `dtype`) to one `.safetensors` file; bounded memory, one pass."""
        size = self.layout.size
        shapes = {"mean": (torch.float32, (size,)), "diagonal": (torch.float32, (size,))}
        arrays = {**shapes, "rows": (dtype, (self.rank, size))} if self.factor is not None else shapes
        metadata = {"weightbank": _KIND, "layout": json.dumps(self.layout.describe())}
        with ArrayWriter(Path(path), arrays, metadata) as file:
            file.write("mean", self.center)
            file.write("diagonal", self.diagonal)
            if self.factor is not None:
                for columns, block in self.factor.blocks():
                    for number, row in enumerate(block.to(dtype)):
                        file.write("rows", row, number * size + columns.start)

    @classmethod
    def load(cls, path: str | Path) -> "Gaussian":
        """A law saved by `save`; its rows stay in the file. `CorruptError` if the file is something else."""
        file = ArrayFile(path)
        if file.metadata.get("weightbank") != _KIND:
            found = file.metadata.get("weightbank", "nothing of weightbank")
            raise CorruptError(f"{path}: holds {found!r}, wanted {_KIND!r}")
        try:
            layout = Layout.parse(json.loads(file.metadata["layout"]))
        except (KeyError, ValueError, RecursionError) as error:
            raise CorruptError(f"{path}: its layout cannot be read: {error}") from error
        shapes = dict(file.shapes)
        rows = shapes.pop("rows", None)
        if shapes != {"mean": (layout.size,), "diagonal": (layout.size,)} or (rows and rows[1:] != (layout.size,)):
            raise CorruptError(f"{path}: arrays {file.shapes} do not fit a layout of {layout.size} weights")
        law = cls(layout, file.read("mean"), file.read("diagonal"))
        return law if rows is None else law._with(FileRows(file, "rows"))

    def _with(self, rows: TensorRows | FileRows) -> "Gaussian":
        factor = Factor(rows, Scaled(rows.count), torch.zeros(1).expand(self.layout.size))
        return Gaussian(self.layout, self.center, self.diagonal, factor)

    def _fill(self, out: Draws, first: int, seed: int) -> None:
        """Draws number `first`, first + 1, ... of a seed; all products have fixed shapes, so bits never depend on S."""
        count, size = out.shape
        padded = -(-count // _GROUP) * _GROUP
        combined, offset = self._combinations(padded, first, seed)
        scratch = torch.empty(padded * min(TILE, size))
        chunk = torch.empty(0 if combined is None else min(_CHUNK, combined.shape[1]) * min(TILE, size))
        for tile, start in enumerate(range(0, size, TILE)):
            columns = slice(start, min(start + TILE, size))
            width = columns.stop - start
            part = scratch[: padded * width].view(padded, width)
            part[:] = self.center[columns]
            if combined is not None and offset is not None and self.factor is not None:
                part.addr_(offset, self.factor.centre[columns])
                for begin in range(0, combined.shape[1], _CHUNK):
                    rows = slice(begin, min(begin + _CHUNK, combined.shape[1]))
                    x = chunk[: (rows.stop - begin) * width].view(-1, width)
                    self.factor.rows.read(rows, columns, x)
                    for group in range(0, padded, _GROUP):
                        part[group : group + _GROUP].addmm_(combined[group : group + _GROUP, rows], x)
            deviation = self.diagonal[columns].sqrt()
            for draw in range(count):
                noise = torch.randn(width, generator=stream(seed, first + draw, tile + 1))
                torch.addcmul(part[draw], deviation, noise, out=out[draw, columns])

    def _combinations(
        self, padded: int, first: int, seed: int
    ) -> tuple[Float[Tensor, "S K"] | None, Float[Tensor, " S"] | None]:
        if self.factor is None:
            return None, None
        z = torch.empty(padded, self.rank, dtype=torch.float64)
        for draw in range(padded):
            generator = stream(seed, first + draw, 0)
            z[draw] = torch.randn(self.rank, generator=generator, dtype=torch.float64)
        parts = [self.factor.weights.pull(z[group : group + _GROUP]) for group in range(0, padded, _GROUP)]
        combined = torch.cat([part[0] for part in parts]).to(torch.float32)
        return combined, torch.cat([part[1] for part in parts]).to(torch.float32)

    def _inverse_root(self) -> Float[Tensor, " P"]:
        zeros = int((self.diagonal <= 0).sum())
        if zeros:
            raise StoreError(
                f"{zeros} of {self.layout.size} weights have no variance of their own, so there is no density; "
                "make the law with a least variance, such as moments.gaussian(floor=1e-12)"
            )
        return self.diagonal.to(torch.float64).rsqrt()

    def _whitened(
        self, residual: Float[Tensor, "B P"] | None
    ) -> tuple[Float[Tensor, "R R"], Float[Tensor, "B R"] | None]:
        """I + V V' and (residual V'), V = U a^-½, in one pass."""
        inner = torch.eye(check_square(self.rank), dtype=torch.float64)
        if self.factor is None:
            return inner, None
        inverse = self._inverse_root()
        products = None if residual is None else torch.zeros(len(residual), self.rank, dtype=torch.float64)
        for columns, block in self.factor.blocks(torch.float64):
            block *= inverse[columns]
            inner += block @ block.T
            if products is not None and residual is not None:
                products += residual[:, columns] @ block.T
        return inner, products

    @staticmethod
    def _logdet(inner: Float[Tensor, "R R"], inverse: Float[Tensor, " P"]) -> float:
        diagonal = torch.linalg.cholesky(inner).diagonal()
        return float(2 * diagonal.log().sum() - 2 * inverse.log().sum())


def stream(seed: int, draw: int, tile: int) -> torch.Generator:
    """An independent stream per draw and tile: the three numbers mixed by splitmix64's finaliser."""
    state = seed & _MASK
    for part in (draw, tile):
        state = (state + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)


_MASK = (1 << 64) - 1

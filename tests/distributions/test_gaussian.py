"""The diagonal plus low-rank law against dense float64 oracles."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weightbank.distributions import Gaussian, Mixture, Moments, Point, Window, multi
from weightbank.distributions.factor import TILE, Dense, Factor, Running, Scaled
from weightbank.distributions.sources import TensorRows
from weightbank.errors import CapacityError, CorruptError, LayoutError, StoreError
from weightbank.layout import Entry, Layout
from weightbank.store import RowLog

Layouts = Callable[[int], Layout]
Iterates = Callable[[int, int], list[Tensor]]


def law_of(size: int, rank: int, *, seed: int = 0) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    layout = Layout((Entry("w", (size,), 0, torch.float32),))
    rows = TensorRows(torch.randn(rank, size, generator=generator))
    diagonal = torch.rand(size, generator=generator) + 0.1
    factor = Factor(rows, Scaled(rank, 0.7), torch.zeros(size))
    return Gaussian(layout, torch.randn(size, generator=generator), diagonal, factor)


def dense(law: Gaussian) -> Tensor:
    assert law.factor is not None
    u = torch.cat([block for _, block in law.factor.blocks(torch.float64)], 1)
    return torch.diag(law.diagonal.double()) + u.T @ u


@pytest.mark.parametrize(("size", "rank"), [(1, 1), (50, 7), (300, 40), (20, 60)])
def test_log_prob_equals_the_dense_gaussian(size: int, rank: int) -> None:
    law = law_of(size, rank)
    theta = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    oracle = torch.distributions.MultivariateNormal(law.mean().double(), dense(law))
    assert torch.allclose(law.log_prob(theta), oracle.log_prob(theta), rtol=1e-10, atol=1e-8)
    assert law.logdet() == pytest.approx(float(torch.logdet(dense(law))), abs=1e-8)


def test_log_prob_of_recorded_rows_equals_the_dense_gaussian(layout_of: Layouts, iterates_of: Iterates) -> None:
    moments = Moments(layout_of(200), rows=RowLog(":memory:", format="bfp8"), keep=Window(15))
    for theta in iterates_of(60, 200):
        moments.update(theta)
    law = moments.gaussian()
    oracle = torch.distributions.MultivariateNormal(law.mean().double(), dense(law))
    theta = law.sample(4, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(law.log_prob(theta), oracle.log_prob(theta), rtol=1e-10, atol=1e-8)


def test_a_law_without_a_factor_is_a_product_of_normals(layout_of: Layouts) -> None:
    law = Gaussian(layout_of(4), torch.zeros(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    oracle = torch.distributions.Normal(torch.zeros(4).double(), law.diagonal.double().sqrt())
    theta = torch.tensor([0.1, -2.0, 0.3, 4.0], dtype=torch.float64)
    assert float(law.log_prob(theta)) == pytest.approx(float(oracle.log_prob(theta).sum()), abs=1e-12)


@pytest.mark.slow
def test_covariance_of_20000_draws_is_the_closed_form() -> None:
    law = law_of(40, 5)
    draws = law.sample(20_000, generator=torch.Generator().manual_seed(3)).double()
    exact = dense(law)
    spread = exact.diagonal()
    error = (draws.T.cov() - exact).abs() / ((exact.square() + spread[:, None] * spread) / 20_000).sqrt()
    assert error.max() < 5  # 800 entries, each normal with this standard deviation
    assert error.mean() < 1  # E|z| = 0.8
    assert ((draws.mean(0) - law.mean()).abs() / (spread / 20_000).sqrt()).max() < 4.5


def test_covariance_of_2000_draws_is_the_closed_form() -> None:
    law = law_of(12, 3)
    draws = law.sample(2_000, generator=torch.Generator().manual_seed(3)).double()
    exact = dense(law)
    spread = exact.diagonal()
    error = (draws.T.cov() - exact).abs() / ((exact.square() + spread[:, None] * spread) / 2_000).sqrt()
    assert error.max() < 4.5


def test_variance_is_the_diagonal_of_the_covariance() -> None:
    law = law_of(300, 20)
    assert torch.allclose(law.variance().double(), dense(law).diagonal(), rtol=1e-6)


def test_draws_do_not_depend_on_how_many_are_asked_for_or_how() -> None:
    law = law_of(TILE + 77, 3)
    many = law.sample(21, generator=torch.Generator().manual_seed(5))
    few = law.sample(2, generator=torch.Generator().manual_seed(5))
    one_by_one = list(law.draws(21, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(few, many[:2])
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, many, strict=True))


def test_draws_do_not_depend_on_the_number_of_threads() -> None:
    law = law_of(TILE + 77, 300)
    threads = torch.get_num_threads()
    draws = []
    for count in (1, 2):
        torch.set_num_threads(count)
        draws.append(law.sample(3, generator=torch.Generator().manual_seed(5)))
    torch.set_num_threads(threads)
    assert torch.allclose(draws[0], draws[1], rtol=1e-5, atol=1e-5)


def test_different_seeds_draws_and_tiles_have_different_noise(layout_of: Layouts) -> None:
    law = Gaussian(layout_of(2 * TILE), torch.zeros(2 * TILE), torch.ones(2 * TILE))
    first = law.sample(2, generator=torch.Generator().manual_seed(0))
    other = law.sample(1, generator=torch.Generator().manual_seed(1))
    parts = [first[0, :TILE], first[0, TILE:], first[1, :TILE], other[0, :TILE]]
    correlations = torch.corrcoef(torch.stack(parts)) - torch.eye(4)
    assert correlations.abs().max() < 5 / TILE**0.5
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(law.sample(1, generator=generator), law.sample(1, generator=generator))


def test_sampled_rows_on_disk_equal_rows_in_memory(tmp_path: Path, layout_of: Layouts, iterates_of: Iterates) -> None:
    draws = []
    for where in (":memory:", tmp_path / "log"):
        moments = Moments(layout_of(TILE + 100), rows=RowLog(where))
        for theta in iterates_of(20, TILE + 100):
            moments.update(theta)
        draws.append(moments.gaussian().sample(2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(draws[0], draws[1])


def test_running_weights_equal_the_double_loop() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.stack([x[i] - x[: i + 1].mean(0) for i in range(9)])
    whole = Running(9, 1, 9, 1.0)
    assert torch.allclose(whole.push(x.clone(), torch.zeros(4, dtype=torch.float64)), expected)
    late = Running(4, 6, 9, 1.0)
    assert torch.allclose(late.push(x[5:].clone(), x.mean(0)), expected[5:])


@pytest.mark.parametrize("weights", [Running(5, 1, 5, 0.3), Running(5, 8, 12, 0.3)])
def test_pulling_a_combination_through_equals_pushing_the_rows(weights: Running) -> None:
    generator = torch.Generator().manual_seed(0)
    x, centre = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 6), (6,)))
    z = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    combined, offset = weights.pull(z)
    assert torch.allclose(combined @ x + offset[:, None] * centre, z @ weights.push(x.clone(), centre))


def test_compression_loses_the_next_eigenvalue() -> None:
    law = law_of(120, 30)
    small = law.compress(12)
    spectrum = law.spectrum()
    difference = dense(law) - dense(small)
    assert small.rank == 12
    assert torch.linalg.matrix_norm(difference, ord=2) == pytest.approx(float(spectrum[12]), rel=1e-4)
    assert torch.equal(law.compress(30).mean(), law.mean())
    with pytest.raises(StoreError, match="rank 0"):
        law.compress(0)


def test_spectrum_and_effective_rank_have_closed_forms(layout_of: Layouts) -> None:
    rows = torch.zeros(4, 10)
    for number, length in enumerate((4.0, 2.0, 1.0, 0.0)):
        rows[number, number] = length
    law = Gaussian(layout_of(10), torch.zeros(10), torch.ones(10), Factor(TensorRows(rows), Scaled(4), torch.zeros(10)))
    assert torch.allclose(law.spectrum(), torch.tensor([16.0, 4.0, 1.0, 0.0], dtype=torch.float64))
    assert law.effective_rank() == pytest.approx(21**2 / (256 + 16 + 1))


def test_a_saved_law_is_an_ordinary_safetensors_file_and_loads_the_same(tmp_path: Path) -> None:
    law = law_of(TILE + 50, 6)
    law.save(tmp_path / "law.safetensors")
    arrays = load_file(tmp_path / "law.safetensors")
    assert {name: tuple(array.shape) for name, array in arrays.items()} == {
        "mean": (TILE + 50,),
        "diagonal": (TILE + 50,),
        "rows": (6, TILE + 50),
    }
    loaded = Gaussian.load(tmp_path / "law.safetensors")
    assert loaded.layout == law.layout
    seeds = (torch.Generator().manual_seed(0) for _ in range(2))
    assert torch.allclose(loaded.sample(2, generator=next(seeds)), law.sample(2, generator=next(seeds)), atol=1e-5)
    law.save(tmp_path / "half.safetensors", dtype=torch.bfloat16)
    assert Gaussian.load(tmp_path / "half.safetensors").variance().sum() == pytest.approx(
        float(law.variance().sum()), rel=1e-3
    )


def test_foreign_files_are_not_laws(tmp_path: Path) -> None:
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CorruptError, match="nothing of weightbank"):
        Gaussian.load(tmp_path / "other.safetensors")
    law_of(5, 2).save(tmp_path / "law.safetensors")
    data = (tmp_path / "law.safetensors").read_bytes()
    (tmp_path / "law.safetensors").write_bytes(data[:-1])
    with pytest.raises(CorruptError, match="not a whole"):
        Gaussian.load(tmp_path / "law.safetensors")
    with pytest.raises(StoreError, match="no such file"):
        Gaussian.load(tmp_path / "nothing.safetensors")


def test_a_law_without_a_diagonal_has_no_density(layout_of: Layouts) -> None:
    law = Gaussian(layout_of(3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(StoreError, match="3 of 3 weights have no variance"):
        law.log_prob(torch.zeros(3))


def test_parts_of_different_sizes_are_refused(layout_of: Layouts) -> None:
    with pytest.raises(LayoutError, match="4"):
        Gaussian(layout_of(3), torch.zeros(4), torch.zeros(4))
    factor = Factor(TensorRows(torch.zeros(1, 4)), Scaled(1), torch.zeros(4))
    with pytest.raises(LayoutError, match="factor over 4"):
        Gaussian(layout_of(3), torch.zeros(3), torch.zeros(3), factor)


def test_a_pool_has_the_mixtures_mean_and_variance() -> None:
    laws = [law_of(30, 4, seed=seed) for seed in range(3)]
    pool = multi(laws)
    assert isinstance(pool, Mixture)
    draws = pool.sample(3_000, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(pool.mean().double(), torch.stack([law.mean().double() for law in laws]).mean(0))
    assert ((draws.mean(0) - pool.mean()).abs() / (pool.variance() / 3_000).sqrt()).max() < 4.5
    assert (draws.var(0) / pool.variance() - 1).abs().max() < 0.15  # (2 to 3)/sqrt(3000), 30 of them
    with pytest.raises(LayoutError, match="layout"):
        multi([laws[0], law_of(31, 2)])
    with pytest.raises(StoreError, match="no posteriors"):
        multi([])


def test_a_pool_of_points_draws_each_equally_often(layout_of: Layouts) -> None:
    pool = multi([Point(torch.full((2,), float(k)), layout_of(2)) for k in range(3)])
    values = pool.sample(7, generator=torch.Generator().manual_seed(0))[:, 0]
    assert sorted(values.tolist()) == [0, 0, 0, 1, 1, 2, 2]


def test_a_matrix_in_front_of_a_factor_is_the_matrix_times_it() -> None:
    law = law_of(20, 5)
    assert law.factor is not None
    matrix = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = law.factor.times(matrix)
    assert isinstance(turned.weights, Dense)
    u = torch.cat([block for _, block in law.factor.blocks(torch.float64)], 1)
    assert torch.allclose(torch.cat([block for _, block in turned.blocks(torch.float64)], 1), matrix @ u)


@pytest.mark.usefixtures("unchecked_types")
def test_numbers_of_draws_that_cannot_be_are_refused() -> None:
    law = law_of(20, 5)
    pool = multi([law, law])
    assert law.sample(0).shape == pool.sample(0).shape == (0, 20)
    assert law.sample(np.int64(2)).shape == (2, 20)  # type: ignore[arg-type]
    for count in (-1, 1.5, "3"):
        for refuse in (law.sample, pool.sample, lambda count: list(law.draws(count))):
            with pytest.raises(StoreError, match=f"{count!r} draws asked for"):
                refuse(count)  # type: ignore[arg-type]


def test_vectors_of_another_length_have_no_density() -> None:
    law = law_of(20, 5)
    for shape in ((21,), (20, 21), (10, 2)):
        with pytest.raises(LayoutError, match=r"wanted \(..., 20\)"):
            law.log_prob(torch.zeros(shape))


def test_more_rows_than_a_matrix_in_memory_can_stand_for_are_refused() -> None:
    law = law_of(1, 20_000)  # a matrix of 3.2 GB
    for ask in (law.spectrum, law.logdet, lambda: law.compress(3), lambda: law.log_prob(torch.zeros(1))):
        with pytest.raises(CapacityError, match="20,000 x 20,000 numbers here, 3.2 GB"):
            ask()
    assert law.sample(2).shape == (2, 1)

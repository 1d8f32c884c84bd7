"""Moments against float64 oracles on the same iterates."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from weightbank.distributions import Moments, Sketch, Window
from weightbank.distributions.welford import advance, advance_reference
from weightbank.errors import LayoutError, NonFiniteError, OverwrittenError, ResumeError, StoreError
from weightbank.layout import Layout
from weightbank.store import RowLog

Layouts = Callable[[int], Layout]
Iterates = Callable[[int, int], list[Tensor]]


def recorded(layout: Layout, iterates: list[Tensor], where: str | Path = ":memory:", **more: object) -> Moments:
    keep = more.pop("keep", None)
    moments = Moments(layout, rows=RowLog(where, **more), keep=keep)  # type: ignore[arg-type]
    for theta in iterates:
        moments.update(theta)
    return moments


def running_deviations(iterates: list[Tensor]) -> Tensor:
    stacked = torch.stack(iterates).double()
    counts = torch.arange(1, len(iterates) + 1, dtype=torch.float64)[:, None]
    return stacked - stacked.cumsum(0) / counts


def dense(factor_rows: Tensor) -> Tensor:
    return factor_rows.T @ factor_rows


def covariance(gaussian: object) -> Tensor:
    """Σ of a law as a dense float64 matrix, from its parts."""
    total = torch.diag(gaussian.diagonal.double())  # type: ignore[attr-defined]
    factor = gaussian.factor  # type: ignore[attr-defined]
    if factor is not None:
        total += dense(torch.cat([b for _, b in factor.blocks(torch.float64)], 1))
    return total


def test_kernel_and_reference_agree_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.zeros(1003), torch.zeros(1003)) for _ in range(2)]
    for count in range(1, 30):
        x = torch.randn(1003, generator=generator) * 10.0 ** float(torch.randint(-20, 15, (1,), generator=generator))
        advance(x, *pairs[0], count)
        advance_reference(x, *pairs[1], count)
    assert torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][1], pairs[1][1])


def test_mean_and_variance_equal_float64_on_the_same_iterates(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(600, 2000)
    moments = recorded(layout_of(2000), iterates)
    exact = torch.stack(iterates).double()
    error = (moments.mean() - exact.mean(0)).abs()
    assert (error / exact.mean(0).abs()).quantile(0.99) < 1e-6
    assert (error / (exact.mean(0).abs() + exact.std(0))).max() < 1e-6  # a mean may be zero by chance
    variances = (moments.variance() / exact.var(0, unbiased=False) - 1).abs()
    assert variances.max() < 1e-5  # 600 roundings of 6e-8, random


def test_offsets_keep_variances_of_iterates_that_hardly_move(layout_of: Layouts) -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(500, generator=generator)
    iterates = [center + 1e-5 * torch.randn(500, generator=generator) for _ in range(200)]
    exact = torch.stack(iterates).double().var(0, unbiased=False)
    error = (recorded(layout_of(500), iterates).variance() / exact - 1).abs()
    assert error.quantile(0.99) < 1e-3


def test_bfloat16_and_float64_iterates_are_taken(layout_of: Layouts) -> None:
    moments = Moments(layout_of(3))
    moments.update(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16))
    moments.update(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    assert moments.mean().tolist() == [2, 2, 2]
    assert moments.variance().tolist() == [1, 0, 1]


@pytest.mark.parametrize("format", [None, "bf16", "fp16", "bfp8", "bfp4"])
def test_mean_and_variance_do_not_depend_on_the_rows_format(
    layout_of: Layouts, iterates_of: Iterates, format: str | None
) -> None:
    iterates = iterates_of(30, 100)
    moments = recorded(layout_of(100), iterates, format=format)
    plain = recorded(layout_of(100), iterates)
    assert torch.equal(moments.mean(), plain.mean())
    assert torch.equal(moments.variance(), plain.variance())


def test_swag_equals_the_published_formula(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(40, 60)
    moments = recorded(layout_of(60), iterates)
    deviations = running_deviations(iterates)
    variance = torch.stack(iterates).double().var(0, unbiased=False)
    expected = 0.5 * (torch.diag(variance) + dense(deviations) / 39)
    assert torch.allclose(covariance(moments.gaussian()), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("keep", ["all", Window(7)])
def test_a_window_has_the_deviations_of_its_newest_rows(
    layout_of: Layouts, iterates_of: Iterates, keep: object
) -> None:
    iterates = iterates_of(40, 60)
    moments = recorded(layout_of(60), iterates, keep=keep)
    law = moments.gaussian(window=7)
    deviations = running_deviations(iterates)[-7:]
    assert law.factor is not None
    low_rank = dense(torch.cat([block for _, block in law.factor.blocks(torch.float64)], 1))
    expected = 0.5 * dense(deviations) / 6
    assert torch.allclose(low_rank, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_divisor_is_the_number_of_filled_rows(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(5, 30)
    law = recorded(layout_of(30), iterates, keep=Window(20)).gaussian()
    expected = 0.5 * dense(running_deviations(iterates)) / 4
    assert law.factor is not None
    low_rank = dense(torch.cat([block for _, block in law.factor.blocks(torch.float64)], 1))
    assert torch.allclose(low_rank, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_sample_covariance_is_exact(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(25, 40)
    law = recorded(layout_of(40), iterates).gaussian(covariance="sample")
    expected = torch.cov(torch.stack(iterates).double().T)
    assert torch.allclose(covariance(law), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_final_mean_deviations_are_from_the_final_mean(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(25, 40)
    law = recorded(layout_of(40), iterates).gaussian(deviations="mean", window=10)
    stacked = torch.stack(iterates).double()
    expected = 0.5 * dense((stacked - stacked.mean(0))[-10:]) / 9
    assert law.factor is not None
    low_rank = dense(torch.cat([block for _, block in law.factor.blocks(torch.float64)], 1))
    assert torch.allclose(low_rank, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_burn_in_and_thinning_equal_recording_less(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(50, 30)
    law = recorded(layout_of(30), iterates).gaussian(burn_in=11, thin=3)
    fewer = recorded(layout_of(30), iterates[11::3]).gaussian()
    assert torch.allclose(law.mean(), fewer.mean(), rtol=1e-6)
    assert torch.allclose(covariance(law), covariance(fewer), rtol=1e-3, atol=1e-9)


def test_running_deviations_weighted_sum_to_the_exact_scatter(iterates_of: Iterates) -> None:
    iterates = iterates_of(50, 30)
    counts = torch.arange(1, 51, dtype=torch.float64)
    stretch = torch.where(counts > 1, counts / (counts - 1), 0)
    stacked = torch.stack(iterates).double()
    weighted = running_deviations(iterates) * stretch.sqrt()[:, None]
    assert torch.allclose(dense(weighted), dense(stacked - stacked.mean(0)), rtol=1e-10)


@pytest.mark.parametrize("rows", [4, 10])
def test_a_sketch_stays_within_its_error_bound(layout_of: Layouts, iterates_of: Iterates, rows: int) -> None:
    iterates = iterates_of(95, 50)
    moments = recorded(layout_of(50), iterates, keep=Sketch(rows))
    assert moments.rows is not None
    stacked = torch.stack(iterates).double()
    exact = dense(stacked - stacked.mean(0))
    law = moments.gaussian(covariance="sample")
    error = torch.linalg.matrix_norm(covariance(law) * 94 - exact, ord=2)
    assert error <= exact.trace() / rows  # Liberty 2013
    assert error > 0
    assert law.rank <= 2 * rows
    assert moments.rows.nbytes < 2 * 4096 * (3 * rows + 5) + 16 * 4096


def test_a_sketch_as_large_as_the_rank_is_exact(layout_of: Layouts, iterates_of: Iterates) -> None:
    basis = torch.stack(iterates_of(3, 40))
    generator = torch.Generator().manual_seed(0)
    iterates = [torch.randn(3, generator=generator) @ basis for _ in range(60)]
    law = recorded(layout_of(40), iterates, keep=Sketch(6)).gaussian(covariance="sample")
    expected = torch.cov(torch.stack(iterates).double().T)
    assert torch.allclose(covariance(law), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("keep", [None, Window(9), Sketch(6)])
@pytest.mark.parametrize("format", ["fp32", "bfp8"])
def test_reopened_moments_continue(
    tmp_path: Path, layout_of: Layouts, iterates_of: Iterates, keep: object, format: str
) -> None:
    iterates = iterates_of(40, 70)
    whole = recorded(layout_of(70), iterates, keep=keep, format=format)
    part = recorded(layout_of(70), iterates[:23], tmp_path / "log", keep=keep, format=format)
    part.close()
    again = Moments(layout_of(70), rows=RowLog(tmp_path / "log"))
    assert again.count == 23
    for theta in iterates[23:]:
        again.update(theta)
    assert torch.equal(again.mean(), whole.mean())
    assert torch.equal(again.variance(), whole.variance())
    generator = torch.Generator().manual_seed(0)
    draws = again.gaussian().sample(3, generator=generator)
    assert torch.equal(draws, whole.gaussian().sample(3, generator=generator.manual_seed(0)))


def test_moments_lost_with_the_process_are_replayed_from_the_rows(
    tmp_path: Path, layout_of: Layouts, iterates_of: Iterates
) -> None:
    iterates = iterates_of(40, 70)
    moments = recorded(layout_of(70), iterates, tmp_path / "log")
    assert moments.rows is not None
    moments.rows.close()  # without saving the moments
    again = Moments(layout_of(70), rows=RowLog(tmp_path / "log"))
    assert torch.equal(again.variance(), moments.variance())
    assert torch.equal(again.mean(), moments.mean())


def test_second_call_to_gaussian_changes_nothing(layout_of: Layouts, iterates_of: Iterates) -> None:
    moments = recorded(layout_of(30), iterates_of(12, 30))
    first, second = moments.gaussian(), moments.gaussian()
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(first.sample(2, generator=generator), second.sample(2, generator=generator.manual_seed(0)))


def test_a_law_of_all_rows_does_not_move_when_recording_goes_on(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(30, 30)
    moments = recorded(layout_of(30), iterates[:20])
    law = moments.gaussian()
    before = law.sample(2, generator=torch.Generator().manual_seed(0))
    for theta in iterates[20:]:
        moments.update(theta)
    assert torch.equal(law.sample(2, generator=torch.Generator().manual_seed(0)), before)


def test_a_law_of_a_window_that_moved_on_says_so(layout_of: Layouts, iterates_of: Iterates) -> None:
    moments = recorded(layout_of(30), iterates_of(30, 30)[:10], keep=Window(4))
    law = moments.gaussian()
    for theta in iterates_of(30, 30)[10:]:
        moments.update(theta)
    with pytest.raises(OverwrittenError, match="left the window of 4 rows"):
        law.sample(1)


def test_rewinding_equals_having_recorded_less(tmp_path: Path, layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(30, 30)
    moments = recorded(layout_of(30), iterates, tmp_path / "log")
    moments.flush()
    moments.rewind(17)
    fewer = recorded(layout_of(30), iterates[:17])
    assert moments.count == 17
    assert torch.equal(moments.variance(), fewer.variance())
    moments.update(iterates[17])
    fewer.update(iterates[17])
    assert torch.equal(moments.mean(), fewer.mean())


def test_iterates_that_come_again_are_checked_not_appended(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(20, 30)
    moments = recorded(layout_of(30), iterates[:10], format="bfp8")
    assert moments.rows is not None
    state = moments.state_dict()
    for theta in iterates[10:15]:
        moments.update(theta)
    whole = moments.state_dict()
    moments.load_state_dict(state)
    assert moments.count == 10
    for theta in iterates[10:15]:
        moments.update(theta)
    assert moments.rows.count == 15
    assert torch.equal(whole["scatter"], moments.state_dict()["scatter"])
    moments.load_state_dict(state)
    with pytest.raises(ResumeError, match=r"moments\.rewind\(10\)"):
        moments.update(iterates[19])


def test_snapshots_are_the_iterates(layout_of: Layouts, iterates_of: Iterates) -> None:
    iterates = iterates_of(12, 30)
    law = recorded(layout_of(30), iterates).snapshots(thin=2)
    draws = law.sample(3)
    stacked = torch.stack(iterates[::2])
    for draw in draws:
        assert (stacked - draw).abs().amax(1).min() < 1e-6
    assert torch.allclose(draws[0], iterates[10], atol=1e-6)
    assert torch.allclose(law.mean(), stacked.mean(0), atol=1e-6)
    assert torch.allclose(law.variance(), stacked.var(0, unbiased=False), rtol=1e-3)


def test_mean_only_moments_have_no_variance(layout_of: Layouts, iterates_of: Iterates) -> None:
    moments = Moments(layout_of(30), variance=False)
    for theta in iterates_of(5, 30):
        moments.update(theta)
    assert torch.allclose(moments.mean(), torch.stack(iterates_of(5, 30)).mean(0))
    with pytest.raises(StoreError, match="variance=False"):
        moments.variance()


def test_bad_iterates_leave_everything_as_it_was(layout_of: Layouts, iterates_of: Iterates) -> None:
    moments = recorded(layout_of(30), iterates_of(5, 30))
    before = moments.state_dict()
    poisoned = iterates_of(5, 30)[0].clone()
    poisoned[3] = float("nan")
    with pytest.raises(NonFiniteError, match="1 of 30 weights"):
        moments.update(poisoned)
    with pytest.raises(LayoutError, match=r"\(29,\) came"):
        moments.update(torch.zeros(29))
    after = moments.state_dict()
    assert moments.rows is not None
    assert moments.rows.count == 5
    assert all(torch.equal(after[name], before[name]) for name in ("mean", "scatter"))


@pytest.mark.parametrize("keep", ["all", Window(3), Sketch(2)])
@pytest.mark.parametrize("format", ["fp32", "bf16", "bfp8"])
def test_a_refused_iterate_of_many_blocks_leaves_no_trace(layout_of: Layouts, format: str, keep: object) -> None:
    size = 150_001
    iterates = list(torch.randn(9, size, generator=torch.Generator().manual_seed(0)).unbind())
    poisoned = iterates[0].clone()
    poisoned[-1] = float("inf")  # found when the blocks before it are done
    disturbed = recorded(layout_of(size), iterates[:7], format=format, keep=keep)
    with pytest.raises(NonFiniteError, match="nothing was recorded"):
        disturbed.update(poisoned)
    for theta in iterates[7:]:
        disturbed.update(theta)
    smooth = recorded(layout_of(size), iterates, format=format, keep=keep)
    assert disturbed.count == smooth.count == 9
    assert disturbed.rows is not None
    assert smooth.rows is not None
    assert disturbed.rows.journal.crcs.tolist() == smooth.rows.journal.crcs.tolist()
    for name in ("mean", "scatter"):
        assert torch.equal(disturbed.state_dict()[name], smooth.state_dict()[name])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("variance", [True, False])
def test_moments_made_by_blocks_equal_those_of_whole_vectors(
    layout_of: Layouts, variance: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 150_001
    iterates = list(torch.randn(4, size, generator=torch.Generator().manual_seed(1)).unbind())
    whole = Moments(layout_of(size), variance=variance)
    for theta in iterates:
        whole.update(theta)
    monkeypatch.setattr("weightbank.distributions.welford.available", lambda: compiled)
    blocks = Moments(layout_of(size), rows=RowLog(":memory:"), variance=variance)
    for theta in iterates:
        blocks.update(theta)
    assert torch.equal(blocks.mean(), whole.mean())
    assert (not variance) or torch.equal(blocks.variance(), whole.variance())


@pytest.mark.parametrize("asked", range(1, 9))
def test_moments_can_be_asked_for_at_any_time(layout_of: Layouts, tmp_path: Path, asked: int) -> None:
    iterates = list(torch.randn(9, 1000, generator=torch.Generator().manual_seed(1)).unbind())
    alone = Moments(layout_of(1000))
    with RowLog(tmp_path / "log") as log:
        moments = Moments(layout_of(1000), rows=log)
        for number, theta in enumerate(iterates, start=1):
            alone.update(theta)
            moments.update(theta)
            if number % asked == 0:
                assert torch.equal(moments.mean(), alone.mean())
                assert torch.equal(moments.variance(), alone.variance())
        for name in ("mean", "scatter"):
            assert torch.equal(moments.state_dict()[name], alone.state_dict()[name])


def test_rows_appended_by_others_do_not_disturb_the_moments(layout_of: Layouts, tmp_path: Path) -> None:
    iterates = list(torch.randn(2, 1000, generator=torch.Generator().manual_seed(1)).unbind())
    alone = Moments(layout_of(1000))
    with RowLog(tmp_path / "log") as log:
        moments = Moments(layout_of(1000), rows=log)
        for theta in iterates:
            alone.update(theta)
            moments.update(theta)
        for _ in range(5):
            log.append(torch.zeros(1000))
        assert torch.equal(moments.mean(), alone.mean())


def test_a_floor_gives_weights_that_never_move_a_density(layout_of: Layouts) -> None:
    moments = Moments(layout_of(2))
    for value in (1.0, 3.0):
        moments.update(torch.tensor([value, 5.0]))
    with pytest.raises(StoreError, match="1 of 2 weights"):
        moments.gaussian().log_prob(torch.zeros(2))
    for floor in (-1.0, float("nan"), float("inf")):
        with pytest.raises(StoreError, match="floor="):
            moments.gaussian(floor=floor)
    law = moments.gaussian(floor=1e-4)
    oracle = torch.distributions.Normal(torch.tensor([2.0, 5.0]), torch.tensor([0.5, 0.5e-4]).sqrt())
    assert float(law.log_prob(torch.tensor([2.5, 5.01]))) == pytest.approx(
        float(oracle.log_prob(torch.tensor([2.5, 5.01])).sum()), rel=1e-4
    )


def test_nothing_recorded_yet_is_said(layout_of: Layouts) -> None:
    for ask in ("gaussian", "mean", "variance", "snapshots"):
        with pytest.raises(StoreError, match="no iterates yet"):
            getattr(Moments(layout_of(3)), ask)()
    moments = Moments(layout_of(3))
    moments.update(torch.zeros(3))
    with pytest.raises(StoreError, match="rows=RowLog"):
        moments.snapshots()
    with pytest.raises(StoreError, match="burn_in"):
        moments.gaussian(burn_in=1)

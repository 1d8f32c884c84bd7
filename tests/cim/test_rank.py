import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightbank.cim import Cells, Device, benefit, rank, rank_cells, select, select_cells
from weightbank.cim.rank import top
from weightbank.errors import DataError, LayoutError, NonFiniteError
from weightbank.layout import Entry, Layout

FEW = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1e-30, 1.0, 1.0 + 2**-23, 3e38])


def lexicographic(score: torch.Tensor, tie: torch.Tensor) -> list[int]:
    return np.lexsort((np.arange(len(score)), -tie.double().numpy(), -score.double().numpy())).tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=30), st.sampled_from([torch.float32, torch.float64]))
def test_rank_is_lexicographic_and_select_takes_its_first(pairs, dtype):
    score, tie = torch.tensor(pairs, dtype=dtype).T.contiguous()
    order = rank(score, tie=tie)
    assert order.tolist() == lexicographic(score, tie)
    assert rank(score).tolist() == lexicographic(score, torch.zeros_like(score))
    for count in {0, 1, len(pairs) // 2, len(pairs) - 1, len(pairs)}:
        chosen = torch.zeros(len(pairs), dtype=torch.bool)
        chosen[order[:count]] = True
        assert torch.equal(select(score, count=count, tie=tie), chosen)
        assert torch.equal(select(order, count=count), chosen)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(FEW, FEW), min_size=4, max_size=24), st.floats(0, 1))
def test_selecting_per_layer_selects_in_each_layer(pairs, fraction):
    score, tie = torch.tensor(pairs).T.contiguous()
    cut = len(pairs) // 3
    layout = Layout((Entry("a", (cut,), 0, torch.float32), Entry("b", (len(pairs) - cut,), cut, torch.float32)))
    parts = [select(score[part], fraction, tie=tie[part]) for part in (slice(cut), slice(cut, None))]
    assert torch.equal(select(score, fraction, tie=tie, layout=layout, per_layer=True), torch.cat(parts))
    order = rank(score, tie=tie)
    assert torch.equal(select(order, fraction, layout=layout, per_layer=True), torch.cat(parts))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(FEW, min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 20), st.data())
def test_top_of_several_rows_is_the_top_of_all_their_numbers(rows, count, data):
    values = torch.tensor(rows)
    among = torch.tensor(data.draw(st.lists(st.booleans(), min_size=5, max_size=5)))
    tie = torch.tensor([1.0, 0.0, 1.0, 2.0, 0.0])
    count = min(count, int(among.sum()) * len(rows))
    allowed = among.repeat(len(rows)).nonzero()[:, 0]
    order = allowed[torch.tensor(lexicographic(values.flatten()[allowed], tie.repeat(len(rows))[allowed]), dtype=int)]
    expected = torch.zeros(values.numel(), dtype=torch.bool)
    expected[order[:count]] = True
    got = top(lambda: list(values), len(rows), count, tie=tie, among=among)
    assert torch.equal(got.flatten(), expected)


def test_selection_has_no_quantile_limit():
    size = 2**24 + 5  # torch.quantile refuses more than 2^24
    score = torch.rand(size, generator=torch.Generator().manual_seed(0))
    mask = select(score, 0.01)
    assert int(mask.sum()) == round(0.01 * size)
    assert float(score[mask].min()) >= float(score[~mask].max())


@pytest.mark.parametrize("device", [Device(4, 1, sigma=0.3), Device(5, 2, sigma="pcm_joshi", verified_sigma=0.01)])
@pytest.mark.parametrize("count", [0, 1, 7, 60, 156])
def test_cells_are_chosen_as_by_brute_force(device, count, layout, theta):
    """Every cell's ½ h scale² 4^(-i m) (σ² - σ_v²), one by one, sorted by Python."""
    score = torch.rand(layout.size, generator=torch.Generator().manual_seed(0)).mul(4).round()
    cells = Cells.of(layout, device, theta)
    found = []
    for row, level in enumerate(cells.levels()):
        for p in range(layout.size):
            if cells.on_device[p]:
                std = device.spread(level)[1], device.spread(level, verified=True)[1]
                before, after = (float(x[p]) if isinstance(x, torch.Tensor) else x for x in std)
                gain = 0.5 * float(score[p]) * float(cells.scale[p]) ** 2 * device.places[row] ** 2
                worth = np.float32(gain * (before**2 - after**2))
                found.append((-worth, -float(cells.relative[p]), row, p))
    count = min(count, len(found))
    expected = torch.zeros(device.cells, layout.size, dtype=torch.bool)
    by_hand = sorted(found)
    for _, _, row, p in by_hand[:count]:
        expected[row, p] = True
    got = select_cells(score, cells, count=count)
    # A product of float32 numbers may round the other way in another order: compare what is gained, then the sets.
    worth = {(row, p): -negative for negative, _, row, p in found}
    assert int(got.sum()) == count
    assert sum(worth[tuple(x)] for x in got.nonzero().tolist()) == pytest.approx(
        sum(worth[tuple(x)] for x in expected.nonzero().tolist()), rel=1e-6
    )
    order = rank_cells(score, cells)
    assert len(order) == len(found)
    first = torch.zeros(got.numel(), dtype=torch.bool)
    first[order[:count]] = True
    assert torch.equal(first.view_as(got), got)


def test_verifying_all_cells_saves_what_the_variances_say(layout, theta):
    from weightbank.cim import program

    score = torch.rand(layout.size, generator=torch.Generator().manual_seed(0))
    device = Device(sigma=0.3, pairs=True)
    before = program(layout, device, theta=theta).variance()
    after = program(layout, device, torch.ones(layout.size, dtype=torch.bool), theta=theta).variance()
    cells = Cells.of(layout, device, theta)
    analog = cells.on_device
    saved = 0.5 * score * (before - after)
    torch.testing.assert_close(benefit(score, cells)[analog], saved[analog])
    assert (benefit(score, cells)[~analog] == -1).all()


def test_bad_requests_are_refused(layout):
    score = torch.tensor([1.0, torch.nan, 2.0])
    with pytest.raises(NonFiniteError, match="1 of 3 scores"):
        rank(score)
    with pytest.raises(NonFiniteError, match="1 of 3 ties"):
        rank(torch.zeros(3), tie=score)
    with pytest.raises(DataError, match=r"fraction=1.5; wanted 0 to 1"):
        select(torch.zeros(3), 1.5)
    with pytest.raises(DataError, match="count=4 of 3"):
        select(torch.zeros(3), count=4)
    with pytest.raises(DataError, match="wanted one of them"):
        select(torch.zeros(3))
    with pytest.raises(DataError, match="some twice"):
        select(torch.tensor([0, 0, 1]), count=2)
    with pytest.raises(DataError, match="from 0 to 7"):
        select(torch.tensor([0, 7, 1]), count=2)
    with pytest.raises(DataError, match="per_layer"):
        select(torch.zeros(3), 0.5, per_layer=True)
    with pytest.raises(LayoutError, match=r"\(46,\)"):
        select(torch.zeros(3), 0.5, per_layer=True, layout=layout)


def test_weights_of_infinite_score_come_first():
    score = torch.tensor([1.0, torch.inf, 3.0, torch.inf, 0.0])
    tie = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
    assert rank(score).tolist() == [1, 3, 2, 0, 4]
    assert rank(score, tie=tie).tolist() == [3, 1, 2, 0, 4]
    assert rank(score.double(), tie=tie).tolist() == [3, 1, 2, 0, 4]
    assert select(score, count=1, tie=tie).tolist() == [False, False, False, True, False]
    assert select(score, count=3).tolist() == [False, True, True, True, False]
    with pytest.raises(NonFiniteError, match="-infinity"):
        rank(-score)


def test_an_infinite_curvature_buys_no_cells(layout):
    theta = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    score = torch.ones(layout.size)
    score[3] = torch.inf
    with pytest.raises(NonFiniteError, match="a curvature is infinite"):
        benefit(score, Cells.of(layout, Device(sigma=0.3), theta))

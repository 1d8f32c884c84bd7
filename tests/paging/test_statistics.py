import pytest
import torch

from weightbank.errors import CapacityError, CurvatureError, LayoutError, NonFiniteError
from weightbank.paging.statistics import Shared, paged


def test_mean_is_the_common_value_of_least_loss(normal, uneven):
    weights, importances = normal(3, 20), uneven(3, 20)
    shared = Shared.empty(20)
    for w, f in zip(weights, importances, strict=True):
        shared.add(slice(0, 20), w, f)
    precise, f = weights.double(), importances.double()
    best = (f * precise).sum(0) / f.sum(0)
    torch.testing.assert_close(shared.mean().double(), best, rtol=1e-5, atol=1e-6)  # float32 sums of three

    def loss(value):
        return (f * (precise - value) ** 2).sum(0)

    for step in (-1e-3, 1e-3):
        assert (loss(best) < loss(best + step)).all()


def test_a_slice_and_its_positions_are_the_same_place(normal, uneven):
    by_slice, by_index = Shared.empty(30), Shared.empty(30)
    by_slice.add(slice(5, 15), normal(10), uneven(10))
    by_index.add(torch.arange(5, 15), normal(10), uneven(10))
    assert torch.equal(by_slice.precision, by_index.precision)
    assert torch.equal(by_slice.moment, by_index.moment)
    assert by_slice.precision[:5].eq(0).all()
    assert by_slice.precision[15:].eq(0).all()


def test_removing_a_tenant_leaves_what_the_others_gave(normal, uneven):
    positions = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:30]
    alone, both = Shared.empty(50), Shared.empty(50)
    f = uneven(50).clamp(1e-3, 10)
    for shared in (alone, both):
        shared.add(slice(0, 50), normal(50), f)
    g = uneven(30, seed=1).clamp(1e-3, 10)
    both.add(positions, normal(30, seed=1), g)
    both.subtract(positions, normal(30, seed=1), g)
    # a sum of at most 20 with 24 bits loses 1e-6, against a precision of 1e-3 at least
    torch.testing.assert_close(both.precision, alone.precision, rtol=3e-3, atol=0)
    torch.testing.assert_close(both.mean(), alone.mean(), rtol=0, atol=1e-2)


def test_the_last_tenant_out_leaves_nothing(normal, uneven):
    shared = Shared.empty(40)
    for seed in (0, 1):
        shared.add(slice(0, 40), normal(40, seed=seed), uneven(40, seed=seed))
    for seed in (0, 1):
        shared.subtract(slice(0, 40), normal(40, seed=seed), uneven(40, seed=seed))
    assert shared.precision.ge(0).all()
    assert shared.mean().abs().max() < 100  # no 0/0, no rounding blown up


def test_a_remainder_of_rounding_counts_as_nothing():
    shared = Shared.empty(1)
    shared.add(slice(0, 1), torch.tensor([0.5]), torch.tensor([1e-9]))
    shared.add(slice(0, 1), torch.tensor([2.0]), torch.tensor([1.0]))
    shared.subtract(slice(0, 1), torch.tensor([2.0]), torch.tensor([1.0]))
    assert shared.precision.item() == 0
    assert shared.mean().item() == 0


def test_where_nobody_cares_the_mean_is_zero():
    shared = Shared.empty(4)
    shared.add(slice(0, 4), torch.ones(4), torch.tensor([0.0, 1, 0, 2]))
    assert shared.mean().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("weights", "importance", "error", "words"),
    [
        ([1.0, float("nan"), 0], [1.0, 1, 1], NonFiniteError, "1 of 3 weights"),
        ([1.0, 0, 0], [1.0, float("inf"), 1], NonFiniteError, "1 of 3 importances"),
        ([1.0, 0, 0], [1.0, -2, 1], CurvatureError, "down to -2"),
        ([1.0, 0, 0], [1.0, 1], LayoutError, "3 weights and 2 importances"),
        ([1.0, 0], [1.0, 1], LayoutError, "2 weights came for 3"),
    ],
)
def test_refused_vectors_change_nothing(weights, importance, error, words):
    shared = Shared.empty(3)
    for change in (shared.add, shared.subtract):
        with pytest.raises(error, match=words):
            change(slice(0, 3), torch.tensor(weights), torch.tensor(importance))
    assert shared.precision.eq(0).all()


def test_the_last_page_is_filled_with_what_matters_to_nobody():
    ((w, f),) = paged([torch.ones(7)], [torch.ones(7)], pages=2, page_size=4)
    assert w.tolist() == f.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_a_network_larger_than_the_memory_is_refused_with_the_numbers():
    with pytest.raises(CapacityError, match="network 1 needs 3 pages of 4 weights but the memory has 2"):
        paged([torch.ones(8), torch.ones(9)], [torch.ones(8), torch.ones(9)], pages=2, page_size=4)

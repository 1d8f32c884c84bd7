from itertools import permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightbank.errors import CapacityError, LayoutError, NonFiniteError
from weightbank.paging import extents
from weightbank.paging.cost import sharing_cost
from weightbank.paging.extents import place_extents
from weightbank.paging.statistics import Shared


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def taken_pool(size, seed, blocked=None):
    """A pool with one tenant everywhere, of very uneven importance."""
    shared = Shared.empty(size)
    draw = generator(seed)
    shared.add(slice(0, size), torch.randn(size, generator=draw), torch.rand(size, generator=draw) ** 8)
    return shared


def tenant(sizes, seed):
    draw = generator(100 + seed)
    return (
        [torch.randn(n, generator=draw) for n in sizes],
        [torch.rand(n, generator=draw) ** 8 for n in sizes],
    )


def cost_at(tensors, importances, shared, offsets):
    total = 0.0
    for w, f, o in zip(tensors, importances, offsets, strict=True):
        there = slice(o, o + len(w))
        total += float(sharing_cost(f[None], w[None], shared.precision[there][None], shared.mean()[there][None]))
    return total


def stands(sizes, offsets, size, align, blocked):
    """Whether the runs are inside, aligned, apart and off what is blocked."""
    used = blocked.clone().long()
    for n, o in zip(sizes, offsets, strict=True):
        if o % align or o < 0 or o + n > size:
            return False
        used[o : o + n] += 1
    return int(used.max()) <= 1


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    size=st.integers(1, 160),
    align=st.sampled_from([1, 3, 8, 16]),
    evaluations=st.sampled_from([1, 40, 3000]),
    data=st.data(),
)
def test_runs_are_aligned_inside_apart_and_off_what_is_blocked(sizes, size, align, evaluations, data):
    blocked = torch.zeros(size, dtype=torch.bool)
    for start in data.draw(st.lists(st.integers(0, size - 1), max_size=2)):
        blocked[start : start + 5] = True
    tensors, importances = tenant(sizes, 0)
    shared = taken_pool(size, 1)
    try:
        offsets = place_extents(
            tensors, importances, shared, blocked=blocked, align=align, evaluations=evaluations, generator=generator()
        )
    except CapacityError:
        return
    assert stands(sizes, offsets, size, align, blocked)


@pytest.mark.parametrize("seed", range(5))
def test_few_tensors_get_the_best_offsets_there_are(seed):
    sizes, size, align = (20, 9, 16), 96, 8
    tensors, importances = tenant(sizes, seed)
    shared = taken_pool(size, seed)
    blocked = torch.zeros(size, dtype=torch.bool)
    blocked[40:43] = True
    found = place_extents(tensors, importances, shared, blocked=blocked, align=align, generator=generator())
    best = min(
        cost_at(tensors, importances, shared, offsets)
        for offsets in product(range(0, size, align), repeat=3)
        if stands(sizes, offsets, size, align, blocked)
    )
    assert cost_at(tensors, importances, shared, found) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_an_order_gets_the_best_offsets_it_can_have(seed, monkeypatch):
    monkeypatch.setattr(extents, "_TABLE", 0)  # no search over all orders
    sizes, size, align = (20, 9, 16), 96, 8
    tensors, importances = tenant(sizes, seed)
    shared, free = taken_pool(size, seed), torch.zeros(size, dtype=torch.bool)
    found = place_extents(tensors, importances, shared, align=align, evaluations=1, generator=generator())
    order = sorted(range(3), key=lambda t: found[t])
    best = min(
        cost_at(tensors, importances, shared, offsets)
        for offsets in product(range(0, size, align), repeat=3)
        if stands(sizes, offsets, size, align, free) and sorted(range(3), key=lambda t: offsets[t]) == order
    )
    assert cost_at(tensors, importances, shared, found) == pytest.approx(best, rel=1e-5)


def test_searched_orders_come_near_the_best_of_all():
    sizes = (30, 8, 50, 16, 40, 8, 20, 10)
    tensors, importances = tenant(sizes, 7)
    shared = taken_pool(224, 7)
    exact = place_extents(tensors, importances, shared, align=8, generator=generator())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extents, "_TABLE", 0)
        searched = place_extents(tensors, importances, shared, align=8, evaluations=2000, generator=generator())
        single = place_extents(tensors, importances, shared, align=8, evaluations=1, generator=generator())
    best, near, first = (cost_at(tensors, importances, shared, o) for o in (exact, searched, single))
    assert best <= near * (1 + 1e-5)
    assert near - best <= 0.1 * (first - best) + 1e-5 * best


def test_searched_orders_are_not_worse_than_random_ones():
    sizes = tuple(5 + 3 * k for k in range(14))
    tensors, importances = tenant(sizes, 3)
    shared = taken_pool(700, 3)
    found = place_extents(tensors, importances, shared, align=4, evaluations=300, generator=generator())
    found_cost = cost_at(tensors, importances, shared, found)
    draw = generator(9)
    for _ in range(50):
        offsets, at = [0] * len(sizes), 0
        for t in torch.randperm(len(sizes), generator=draw).tolist():
            offsets[t] = at
            at += -(-sizes[t] // 4) * 4
        assert found_cost < cost_at(tensors, importances, shared, offsets)


def test_a_pool_that_fits_only_one_way_is_filled():
    blocked = torch.zeros(80, dtype=torch.bool)
    blocked[32:48] = True  # runs of 32 and 32
    sizes = (16, 24, 8, 16)
    tensors, importances = tenant(sizes, 0)
    for evaluations in (1, 3000):  # by first fit of the longest, and by all orders
        offsets = place_extents(
            tensors, importances, taken_pool(80, 0), blocked=blocked, align=8, evaluations=evaluations,
            generator=generator(),
        )  # fmt: skip
        assert stands(sizes, offsets, 80, 8, blocked)


def test_what_does_not_fit_is_refused_with_the_numbers():
    blocked = torch.zeros(80, dtype=torch.bool)
    blocked[40:48] = True
    tensors, importances = tenant((41, 8), 0)
    with pytest.raises(
        CapacityError, match=r"49 weights \(64 when aligned to 16; the largest 41\).*72 are free, in 2 ru"
    ):
        place_extents(tensors, importances, Shared.empty(80), blocked=blocked, generator=generator())


def test_a_coarse_grid_gives_way_where_it_is_too_coarse(monkeypatch):
    monkeypatch.setattr(extents, "_SLOTS", 4)
    sizes = (18, 18, 18, 10)  # on a grid of 16 they would take 112 of 64
    tensors, importances = tenant(sizes, 0)
    offsets = place_extents(tensors, importances, taken_pool(64, 0), align=2, generator=generator())
    assert stands(sizes, offsets, 64, 2, torch.zeros(64, dtype=torch.bool))


def test_nothing_that_matters_still_finds_a_place():
    tensors = [torch.ones(20), torch.ones(0), torch.ones(30)]
    offsets = place_extents(tensors, [x * 0 for x in tensors], Shared.empty(64), generator=generator())
    assert stands((20, 0, 30), offsets, 64, 16, torch.zeros(64, dtype=torch.bool))


def test_important_weights_avoid_important_positions():
    shared = Shared.empty(64)
    shared.add(slice(0, 32), torch.ones(32), torch.ones(32))
    assert place_extents([-torch.ones(20)], [torch.ones(20)], shared, generator=generator()) == [32]


def test_refused_vectors():
    pool = Shared.empty(64)
    with pytest.raises(NonFiniteError, match="importances of tensor 1"):
        place_extents([torch.ones(2)] * 2, [torch.ones(2), torch.tensor([1, torch.nan])], pool, generator=generator())
    with pytest.raises(LayoutError, match="2 tensors came with 1"):
        place_extents([torch.ones(2)] * 2, [torch.ones(2)], pool, generator=generator())
    with pytest.raises(LayoutError, match="blocked has 5"):
        place_extents([], [], pool, blocked=torch.zeros(5, dtype=torch.bool), generator=generator())
    with pytest.raises(LayoutError, match="align = 0"):
        place_extents([], [], pool, align=0, generator=generator())


def test_five_networks_as_extents_lose_a_tenth_of_what_published_pages_lose(published_networks):
    weights, fishers, sizes = published_networks
    shared, lost = Shared.empty(70_000), 0.0
    for theta, fisher, parts in zip(weights, fishers, sizes, strict=True):
        tensors, importances = list(theta.split(parts)), list(fisher.split(parts))
        offsets = place_extents(tensors, importances, shared, evaluations=300, generator=generator())
        lost += cost_at(tensors, importances, shared, offsets)
        for w, f, o in zip(tensors, importances, offsets, strict=True):
            shared.add(slice(o, o + len(w)), w, f)
    assert lost < 0.03  # measured 0.022; 0.127 to 0.207 by the published greedy


def test_permutations_of_equal_tensors_cost_the_same():
    tensors, importances = tenant((16, 16, 16), 2)
    shared = taken_pool(48, 2)
    costs = {
        round(
            cost_at(
                [tensors[t] for t in order],
                [importances[t] for t in order],
                shared,
                place_extents(
                    [tensors[t] for t in order], [importances[t] for t in order], shared, generator=generator()
                ),
            ),
            4,
        )
        for order in permutations(range(3))
    }
    assert len(costs) == 1

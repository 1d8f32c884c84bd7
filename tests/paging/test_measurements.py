import math

import pytest
import torch
import torch.nn.functional as F

from weightbank.paging import measurements
from weightbank.paging.allocated import allocated
from weightbank.paging.experiments import Member, Setup, place
from weightbank.paging.pages import merge_loss
from weightbank.task import Task
from weightbank.zoo import mlp

SETUP = Setup(page_size=50)


def network(seed: int, hidden: int = 20) -> Member:
    generator = torch.Generator().manual_seed(seed)
    task = Task(f"net-{seed}", mlp(8, hidden, 4), F.cross_entropy, [], [])
    theta = torch.randn(task.layout.size, generator=generator)
    task.layout.assign(task.model, theta)
    return Member(task, torch.rand(task.layout.size, generator=generator), held=True)


@pytest.fixture(scope="module")
def members() -> list[Member]:
    return [network(seed) for seed in range(3)]


def test_every_policy_is_timed_for_every_page_size_and_the_searched_one_costs_least(members):
    rows = list(measurements.matching(members, SETUP, sizes=(10, 50)))
    assert [(row["page_size"], row["policy"]) for row in rows] == [
        (size, policy) for size in (10, 50) for policy in ("pages", "published", "random")
    ]
    assert [row["pages"] for row in rows[::3]] == [27, 6]
    for size in (10, 50):
        losses = {row["policy"]: row["merge_loss"] for row in rows if row["page_size"] == size}
        assert losses["pages"] < losses["random"]
    assert all(row["seconds"] > 0 and row["pair_cost"] > 0 for row in rows)


def test_one_network_costs_nothing_wherever_it_stands(members):
    rows = list(measurements.matching(members[:1], SETUP, sizes=(10,)))
    assert [row["merge_loss"] for row in rows] == pytest.approx([0, 0, 0], abs=1e-9)  # squares of float32 rounding


def test_the_first_switch_is_apart_from_the_random_ones(members):
    rows = list(measurements.switching(members, SETUP, switches=40))
    assert [(row["way"], row["network"]) for row in rows] == [
        (way, f"net-{number}") for way in ("use", "gather", "file") for number in range(3)
    ]
    for way in ("use", "gather", "file"):
        assert sum(row["switches"] for row in rows if row["way"] == way) == 40
    for row in rows:
        assert row["first_us"] > 0
        assert 0 < row["median_us"] <= row["slowest_us"]


def test_a_network_that_is_never_switched_to_has_no_median(members):
    rows = list(measurements.switching(members[:2], SETUP, switches=0))
    assert all(math.isnan(row["median_us"]) and row["first_us"] > 0 for row in rows)


def test_reading_files_leaves_the_members_as_they_were(members):
    before = [member.task.theta() for member in members]
    list(measurements.switching(members, SETUP, switches=3))
    assert all(torch.equal(old, member.task.theta()) for old, member in zip(before, members, strict=True))


def test_allocations_are_counted_to_the_byte_or_nearly():
    before = allocated()
    if before is None:
        pytest.skip("this C library has no mallinfo2")
    small, large = [torch.empty(1000) for _ in range(50)], torch.empty(10**6)
    found = allocated() - before
    # 64 bytes of alignment, a header of 16 and a page for each mapped block; torch's own records beside
    assert 4_200_000 <= found <= 4_200_000 + 51 * 1000 + 2 * 4096
    del small, large
    assert abs(allocated() - before) < 51 * 1000


def test_a_pool_holds_the_same_bytes_for_more_networks_and_apart_they_add_up():
    members = [network(seed, hidden=600) for seed in range(4)]
    rows = list(measurements.memory(members, Setup(page_size=50), counts=(1, 2, 4)))
    assert [row["networks"] for row in rows] == [1, 2, 4]
    weights = members[0].task.layout.size
    assert [row["apart_computed"] for row in rows] == [4 * weights * count for count in (1, 2, 4)]
    for row in rows:
        assert 4 * weights <= row["pool_computed"] < 4 * weights + 1000
        if row["pool_held"] is None:
            pytest.skip("this C library has no mallinfo2")
        assert row["pool_computed"] <= row["pool_held"] + 50_000
        assert row["pool_held"] < 1.2 * row["pool_computed"] + 50_000  # modules without numbers: some kB each
        assert row["apart_held"] == pytest.approx(row["apart_computed"], rel=0.2)


def test_pairs_are_told_what_they_share_and_what_it_costs(members):
    rows = list(measurements.sharing(members, SETUP))
    assert [(row["first"], row["second"]) for row in rows] == [
        ("net-0", "net-1"),
        ("net-0", "net-2"),
        ("net-1", "net-2"),
    ]
    pool, _ = place(members, SETUP)
    ramp = torch.arange(pool.size, dtype=torch.float64)
    places = {m.name: pool.generation.tenants[m.name].placement.gather(ramp).tolist() for m in members}
    by_name = {m.name: m for m in members}
    for row in rows:
        one, other = by_name[row["first"]], by_name[row["second"]]
        where = {place: number for number, place in enumerate(places[other.name])}
        count, cost = 0, 0.0
        for i, position in enumerate(places[one.name]):
            if position in where:
                j = where[position]
                f, g = (float(m.importance[k] / m.importance.mean()) for m, k in ((one, i), (other, j)))
                count += 1
                cost += f * g / (f + g) * float(one.theta[i] - other.theta[j]) ** 2
        assert row["shared"] == count
        assert row["cost"] == pytest.approx(cost, rel=1e-5)


def test_the_cost_of_a_pair_that_shares_everything_is_its_merge_loss(members):
    pair = members[:2]
    (row,) = measurements.sharing(pair, Setup(page_size=264, placement="pages"))
    assert row["shared"] == 264
    importances = [m.importance / m.importance.mean() for m in pair]
    table = [torch.zeros(1, dtype=torch.int64)] * 2
    loss = merge_loss([m.theta for m in pair], importances, table, pages=1, page_size=264)
    assert row["cost"] == pytest.approx(loss, rel=1e-5)


def test_the_most_important_half_of_ten_has_its_share():
    task = Task("ten", mlp(4, 2), F.cross_entropy, [], [])
    member = Member(task, torch.arange(10.0), held=True)
    rows = list(measurements.importances([member], points=200))
    assert [row["weights"] for row in rows] == [count / 10 for count in range(1, 11)]
    expected = [sum(range(10 - count, 10)) / 45 for count in range(1, 11)]
    assert [row["importance"] for row in rows] == pytest.approx(expected)

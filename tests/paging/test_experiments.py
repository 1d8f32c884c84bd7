import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weightbank.errors import DataError
from weightbank.formats import format_of
from weightbank.paging import experiments
from weightbank.paging.experiments import Member, Setup, accuracy, fixed, place, share
from weightbank.task import Task
from weightbank.zoo import mlp


def member(seed: int, *, held: bool = False, hidden: int = 9) -> Member:
    """A network that tells in which of two halves of a plane a point lies; each seed has its own halves."""
    generator = torch.Generator().manual_seed(seed)
    x, direction = torch.randn(300, 2, generator=generator), torch.randn(2, generator=generator)
    y = (x @ direction > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp(2, hidden, 2)
    task = Task(f"net-{seed}", model, F.cross_entropy, (x[:200], y[:200]), (x[200:], y[200:]), batch_size=20)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for x, y in [*task.train] * 4:
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        optimizer.step()
    if held:
        task = Task(task.name, model, F.cross_entropy, [], [])
    return Member(task, torch.ones(task.layout.size), held=held)


@pytest.fixture(scope="module")
def members() -> list[Member]:
    return [member(0), member(1), member(2, held=True)]


SETUP = Setup(page_size=16, steps=20, lr=0.02, rounds=2)


def test_accuracy_counts_right_answers(members):
    task = members[0].task
    x, y = task.test.x, task.test.y
    with torch.no_grad():
        right = (task.model(x).argmax(1) == y).sum()
    assert accuracy(task, task.theta()) == pytest.approx(float(right) / 100)
    assert members[0].alone == accuracy(task, task.theta())
    assert members[2].alone is None


def test_the_pool_is_as_large_as_the_largest_network_in_whole_pages():
    nets = [member(0), member(1, hidden=12)]
    assert nets[1].task.layout.size == 2 * 12 + 12 + 12 * 2 + 2
    assert fixed(nets, SETUP).capacity == 64
    assert place(nets, SETUP)[0].size == 64
    assert fixed(nets, Setup(capacity="1 kB")).capacity == "1 kB"
    with pytest.raises(DataError, match="no network came"):
        fixed([], SETUP)


def test_sharing_with_nobody_changes_nothing(members):
    (row,) = share(members[:1], Setup(page_size=16, steps=1, lr=1e-9), run="alone")
    assert next(iter(row)) == "run"
    assert row["placed"] == row["tuned"] == row["alone"] == members[0].alone
    assert row["packing"] == 47 / 48
    assert row["held"] is False


def test_tuning_brings_back_what_sharing_cost(members):
    rows = list(share(members[:2], replace(SETUP, steps=80)))
    assert [row["network"] for row in rows] == ["net-0", "net-1"]
    lost = sum(row["alone"] - row["placed"] for row in rows)
    assert lost > 0.1
    assert sum(row["alone"] - row["tuned"] for row in rows) < 0.5 * lost


def test_held_networks_have_no_accuracy(members):
    rows = list(share(members, SETUP))
    assert rows[2] | {"held": True, "alone": None, "placed": None, "tuned": None} == rows[2]
    assert all(row["finite"] is True for row in rows)


def test_numbers_of_networks_are_those_there_are_and_the_memory_stays(members):
    rows = list(experiments.networks(members, SETUP, counts=(1, 3, 7)))
    assert [(row["networks"], row["network"]) for row in rows] == [
        (1, "net-0"),
        (3, "net-0"),
        (3, "net-1"),
        (3, "net-2"),
    ]
    assert rows[0]["packing"] == rows[1]["packing"] / 3
    assert [row["networks"] for row in experiments.networks(members, SETUP, counts=(7,))] == [3, 3, 3]


def test_page_tables_have_two_bytes_a_page_and_a_mark(members):
    rows = list(experiments.page_sizes(members[:2], SETUP, sizes=(5, 16)))
    assert [row["table_bytes"] for row in rows] == [2 * 10 * 3] * 2 + [2 * 3 * 3] * 2
    assert [row["page_size"] for row in rows] == [5, 5, 16, 16]


def test_penalties_are_compared_with_tying(members):
    rows = list(experiments.penalties(members[:2], SETUP, weights=(1, 10)))
    assert [(row["method"], row["penalty"]) for row in rows[::2]] == [("joint", 1), ("joint", 10), ("tied", 0)]


def test_orders_are_sequential_joint_and_tied_from_the_same_places(members):
    rows = list(experiments.orders(members[:2], SETUP))
    assert [row["method"] for row in rows[::2]] == ["sequential", "joint", "tied"]
    assert len({row["placed"] for row in rows[::2]}) == 1


def test_formats_are_tried_on_copies_of_one_tuned_pool(members):
    rows = list(experiments.formats(members, SETUP, ["bfp8", "bfp4"], steps=40))
    assert [(row["format"], row["network"]) for row in rows] == [
        (name, member.name) for name in ("bfp8", "bfp4") for member in members
    ]
    pool, _ = place(members, SETUP)
    experiments.tune_all(pool, members, SETUP)
    for row, each in zip(rows, [*members, *members], strict=True):
        theta = pool.generation.tenants[each.name].placement.gather(
            format_of(row["format"]).quantize(pool.generation.owner.values())
        )
        assert row["nearest"] == (None if each.held else accuracy(each.task, theta))
        assert row["tuned"] == (None if each.held else accuracy(each.task, pool[each.name].mean()))
        assert row["pool_bytes"] == format_of(row["format"]).row_bytes(pool.size)
        if each.held:
            assert row["by_example"] is row["moved_nearest"] is row["moved_by_example"] is None
    for seen in [[row for row in rows if row["format"] == name and row["moved_nearest"]] for name in ("bfp8", "bfp4")]:
        assert sum(row["moved_by_example"] for row in seen) <= sum(row["moved_nearest"] for row in seen)


def test_convergence_starts_before_the_first_step_and_ends_with_the_last(members):
    rows = list(experiments.convergence(members, Setup(page_size=16, steps=10, every=4)))
    assert [row["step"] for row in rows if row["network"] == "net-0"] == [0, 4, 8, 10]
    assert {row["network"] for row in rows} == {"net-0", "net-1"}
    assert all(0 <= row["score"] <= 1 and math.isfinite(row["score"]) for row in rows)


def test_members_are_as_they_were_after_every_experiment(members):
    before = [member.task.theta() for member in members]
    for run in (experiments.orders, experiments.convergence):
        list(run(members, SETUP))
    assert all(torch.equal(old, member.task.theta()) for old, member in zip(before, members, strict=True))

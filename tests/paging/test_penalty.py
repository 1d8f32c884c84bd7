import torch

import pooled
from weightbank.paging import tune
from weightbank.paging.penalty import _others


def test_the_pull_of_the_others_is_counted_weight_by_weight() -> None:
    """Against a loop over positions and networks."""
    pool = pooled.filled()
    with pool.edit() as draft:
        draft.publish = False
        latest = {name: draft.theta(name) + number for number, name in enumerate(draft.tenants)}
        precision, moment, terms = _others(draft, "two", latest)
    places = {name: t.placement.gather(torch.arange(pool.size)).tolist() for name, t in pool.generation.tenants.items()}
    for weight in range(0, len(places["two"]), 37):
        position = places["two"][weight]
        total, weighted, count = 0.0, 0.0, 0
        for name, tenant in pool.generation.tenants.items():
            if name != "two" and position in places[name]:
                other = places[name].index(position)
                assert tenant.importance is not None
                importance = float(tenant.importance[other]) * tenant.scale
                total, weighted, count = (
                    total + importance,
                    weighted + importance * float(latest[name][other]),
                    count + 1,
                )
        torch.testing.assert_close(float(precision[weight]), total, rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(float(moment[weight]), weighted, rtol=1e-4, atol=1e-9)
        assert int(terms[weight]) == max(count, 1)


def test_the_stronger_the_penalty_the_less_the_networks_move_from_each_other() -> None:
    moved = []
    for hold in (0.0, 10.0, 1000.0):
        pool = pooled.filled(3_900)
        before = pool.generation.owner.values().clone()
        options = {"steps": 100, "lr": 1e-2, "hold": hold, "tolerance": 10.0}
        done = tune(pool, pooled.tasks(), method="sequential", **options)  # type: ignore[arg-type]
        assert done.committed
        assert [step for step, _ in done.history] == [0, 100]
        moved.append(float((pool.generation.owner.values() - before).norm()))
    assert moved[0] > 1.2 * moved[1] > 1.5 * moved[2]


def test_networks_take_turns_and_the_commit_rule_refuses_what_they_do_to_each_other() -> None:
    pool = pooled.filled(3_900)
    generation = pool.generation
    done = tune(pool, pooled.tasks(), steps=60, method="joint", rounds=3, lr=3e-2, hold=0.0, tolerance=-1.0)
    assert [step for step, _ in done.history] == [0, 20, 40, 60]
    assert done.steps == 180
    assert not done.committed  # nobody gains a hundred points
    assert pool.generation is generation

import pytest
import torch

from pooled import filled, importances, tasks
from weightbank.budget import allocate
from weightbank.errors import CapacityError, DataError, LayoutError
from weightbank.paging import Pool
from weightbank.paging.draft import importance_kept
from weightbank.paging.spending import keep_private, private_options

CAPACITY, RESERVE = 5_600, 1_200


def weights() -> dict[str, torch.Tensor]:
    return {task.name: task.theta() for task in tasks()}


def merge_loss(pool: Pool, curvatures: dict[str, torch.Tensor] | None = None) -> float:
    """½ Σ F (w - v)² over all networks, weight by weight."""
    total = 0.0
    for name, own in weights().items():
        score = importance_kept(pool.generation.tenant(name)) if curvatures is None else curvatures[name]
        total += float(0.5 * (score.double() * (own - pool[name].mean()).double().square()).sum())
    return total


def test_options_add_up_to_the_merge_loss_of_the_pool() -> None:
    pool = filled()
    for curvatures in (None, importances()):
        menu = private_options(pool, weights(), curvatures=curvatures)
        assert float(menu.options.increase[:, 0].sum()) == pytest.approx(merge_loss(pool, curvatures), rel=1e-5)
        assert float(menu.options.increase[:, 1].abs().max()) == 0
        for (_, extent), (shared, private) in zip(menu.extents, menu.options.costs["bytes"].tolist(), strict=True):
            assert shared == 0
            assert 4 * extent.length <= private < 4 * (extent.length + 16)  # aligned to 64 bytes


def test_what_stays_private_is_the_best_of_all_choices() -> None:
    pool = filled(CAPACITY, reserve=RESERVE)
    menu = private_options(pool, weights())
    lost, bytes = menu.options.increase[:, 0], menu.options.costs["bytes"][:, 1]
    ways = (torch.arange(2 ** len(lost))[:, None] >> torch.arange(len(lost)) & 1).double()  # all, 65,536 of them
    kept, taken = (1 - ways) @ lost, ways @ bytes
    for budget in (200.0, 1_000.0, 4_000.0):
        best = float(kept[taken <= budget].min())
        assert allocate(menu.options, {"bytes": budget}).increase == pytest.approx(best)


def test_the_pool_then_loses_no_more_than_was_promised() -> None:
    pool = filled(CAPACITY, reserve=RESERVE)
    before = merge_loss(pool)
    menu = private_options(pool, weights())
    found = allocate(menu.options, {"bytes": 1_000})
    chosen = menu.chosen(found)
    assert 0 < len(chosen) < len(menu.extents)
    keep_private(pool, weights(), chosen)
    assert merge_loss(pool) <= found.increase * (1 + 1e-5)
    assert found.increase < before
    for name, extent in chosen:
        kept = pool[name].mean()[extent.start : extent.start + extent.length]
        assert torch.equal(kept, weights()[name][extent.start : extent.start + extent.length])
    left = private_options(pool, weights())
    assert not {(name, e.start) for name, e in chosen} & {(name, e.start) for name, e in left.extents}


def test_a_budget_for_all_makes_every_network_its_own() -> None:
    pool = filled(14_000, reserve=14_000 - 5_200)
    before = merge_loss(pool)
    menu = private_options(pool, weights())
    found = allocate(menu.options, {"bytes": 1e9})
    assert found.increase == 0 < before
    keep_private(pool, weights(), menu.chosen(found))
    assert merge_loss(pool) < 1e-9
    with pytest.raises(DataError, match="no extent is shared"):
        private_options(pool, weights())


def test_too_much_and_strangers_are_refused_and_nothing_changes() -> None:
    pool = filled()
    menu = private_options(pool, weights())
    generation = pool.generation
    with pytest.raises(CapacityError, match="free positions in one run"):
        keep_private(pool, weights(), menu.extents)
    name, extent = menu.extents[0]
    with pytest.raises(LayoutError, match="private_options"):
        keep_private(pool, weights(), [("nobody", extent)])
    with pytest.raises(LayoutError, match=f"tenant '{name}'"):
        private_options(pool, {task: own for task, own in weights().items() if task != name})
    assert pool.generation is generation

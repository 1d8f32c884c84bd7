import torch
from hypothesis import given
from hypothesis import strategies as st

import pooled
from weightbank.paging.exclusive import last_free_run, set_apart


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 12), st.sampled_from([1, 4, 16]))
def test_the_last_free_run_is_found(free: list[bool], length: int, align: int) -> None:
    wanted = None
    for start in range(0, len(free) - length + 1, align):
        if all(free[start : start + length]):
            wanted = start
    assert last_free_run(torch.tensor(free), length, align) == wanted


def test_setting_pages_apart_changes_no_weight_of_anybody() -> None:
    pool = pooled.filled(5_600, reserve=640, placement="pages", page_size=64)
    before = {name: pool[name].mean().clone() for name in pool}
    with pool.edit() as draft:
        moved = set_apart(draft, "two")
    assert moved >= 640 - 64  # the reserve may begin in the middle of a page
    for name in pool:
        assert torch.equal(pool[name].mean(), before[name])
    placement = pool.generation.tenants["two"].placement
    assert int(placement.private.sum()) * 64 == moved
    placement.check(pool.size)
    used = torch.zeros(pool.size, dtype=torch.int32)
    for tenant in pool.generation.tenants.values():
        tenant.placement.mark(used)
    for position, length in placement.runs(exclusive_only=True):
        assert int(used[position : position + length].max()) == 1


def test_the_most_important_pages_go_first() -> None:
    pool = pooled.filled(4_480, reserve=320, placement="pages", page_size=64)
    tenant = pool.generation.tenants["conv"]
    assert tenant.importance is not None
    sums = torch.nn.functional.pad(tenant.importance.float(), (0, -tenant.layout.size % 64)).view(-1, 64).sum(1)
    with pool.edit() as draft:
        moved = set_apart(draft, "conv")
    private = pool.generation.tenants["conv"].placement.private
    assert moved == 64 * int(private.sum()) == 320
    assert float(sums[private].min()) >= float(sums[~private].max())

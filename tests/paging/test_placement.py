import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightbank.errors import LayoutError
from weightbank.paging import Extent, Placement

POOL = 64


def placed(lengths: list[tuple[int, bool]], page_size: int, order: list[int], pages: list[int]) -> Placement:
    """Tensors as extents in the upper half of a pool of 64 positions, or in pages of the lower half."""
    extents, start = [], 0
    for number, (length, run) in enumerate(lengths):
        if run:
            extents.append(Extent(start, 28 + 6 * order[number], length))
        start += length
    left = start - sum(extent.length for extent in extents)
    count = -(-left // page_size)
    usable = [page for page in pages if page < 28 // page_size][:count]
    if len(usable) < count:  # too large for the lower half
        return Placement(start, (Extent(0, 0, start),))
    table = torch.tensor(usable, dtype=torch.int64)
    return Placement(start, tuple(extents), page_size, table, torch.zeros(count, dtype=torch.bool))


def slow_index(placement: Placement) -> Tensor:
    """The position of each weight, one by one."""
    where, rest = [], 0
    for weight in range(placement.size):
        for extent in placement.extents:
            if extent.start <= weight < extent.start + extent.length:
                where.append(extent.position + weight - extent.start)
                break
        else:
            page = int(placement.pages[rest // placement.page_size])
            where.append(page * placement.page_size + rest % placement.page_size)
            rest += 1
    return torch.tensor(where)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 5),
    st.permutations(range(6)),
    st.permutations(range(28)),
)
def test_reading_and_writing_go_weight_by_weight(
    lengths: list[tuple[int, bool]], page_size: int, order: list[int], numbers: list[int]
) -> None:
    placement = placed(lengths, page_size, order, numbers)
    placement.check(POOL)
    index = slow_index(placement)
    assert len(index.unique()) == placement.size
    memory = torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    theta = torch.arange(placement.size) + 100.0
    assert torch.equal(placement.gather(memory), memory[index])
    added, wanted = memory.clone(), memory.clone()
    placement.add(added, theta)
    wanted[index] += theta
    assert torch.equal(added, wanted)
    placement.put(added, theta)
    wanted[index] = theta
    assert torch.equal(added, wanted)
    count, marked = torch.zeros(2, POOL, dtype=torch.int32)
    placement.mark(count)
    marked[index] += 1
    assert torch.equal(count, marked)


def test_a_run_inside_an_extent_has_an_offset_and_others_have_none() -> None:
    placement = Placement(10, (Extent(0, 20, 4), Extent(4, 24, 4)), 2, torch.tensor([3]), torch.tensor([False]))
    assert placement.offset(1, 3) == 21
    assert placement.offset(4, 4) == 24
    assert placement.offset(3, 2) is None  # over a border, although the extents happen to touch
    assert placement.offset(8, 2) is None  # in a page


def pages(*numbers: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(numbers), torch.zeros(len(numbers), dtype=torch.bool)


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (Placement(4, (Extent(0, 62, 4),)), "leave the 64 positions"),
        (Placement(8, (Extent(0, 0, 4), Extent(4, 2, 4))), "overlap others of the same network"),
        (Placement(8, (Extent(0, 0, 4), Extent(2, 8, 6))), "overlaps another"),
        (Placement(8, (Extent(4, 0, 4), Extent(0, 8, 4))), "overlaps another"),
        (Placement(4, (Extent(0, 0, 5),)), "leaves the 4 weights"),
        (Placement(4, (Extent(0, 0, 0), Extent(0, 0, 4))), "overlaps another"),
        (Placement(4, ()), "need 4 pages of 1; 0 came"),
        (Placement(4, (), 2, *pages(1, 1)), "overlap others of the same network"),
        (Placement(4, (), 2, *pages(1, 32)), "a page outside the 32"),
        (Placement(4, (), 2, *pages(-1, 3)), "a page outside the 32"),
        (Placement(4, (), 2, *pages(1, 2, 3)), "need 2 pages of 2; 3 came"),
        (Placement(6, (Extent(0, 2, 2),), 2, *pages(1, 4)), "overlap others of the same network"),
        (Placement(4, (), 0), "need -1 pages of 0"),
    ],
)
def test_a_placement_that_is_not_one_position_per_weight_is_refused(placement: Placement, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        placement.check(POOL)


@pytest.mark.parametrize(("last", "size"), [(32_767, 2), (32_768, 4), (2**31, 8)])
def test_page_tables_take_the_bytes_that_their_numbers_need(last: int, size: int) -> None:
    placement = Placement(5, (Extent(0, 0, 1),), 2, torch.tensor([3, last]), torch.tensor([False, True]))
    assert placement.pages.tolist() == [3, last]
    assert placement.nbytes == 12 + 2 * size + 2
    assert placement.index().tolist() == [6, 7, 2 * last, 2 * last + 1]
    assert list(placement.runs()) == [(0, 1), (6, 2), (2 * last, 2)]

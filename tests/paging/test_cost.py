import pytest
import torch

from weightbank.paging.cost import (
    offset_cost,
    offset_cost_reference,
    published_cost,
    sharing_cost,
    sharing_cost_reference,
)


def group_loss(w: torch.Tensor, f: torch.Tensor) -> float:
    """Σ F (w - w̄)² of what stands on one position, in float64."""
    w, f = w.double(), f.double()
    return float((f * (w - (f * w).sum() / f.sum()) ** 2).sum())


@pytest.fixture
def pages(normal, uneven):
    f, w, g, v = uneven(7, 11), normal(7, 11), uneven(9, 11, seed=1), normal(9, 11, seed=1)
    f[2], g[3], f[4, 5], g[4, 5] = 0, 0, 0, 0
    return f, w, g, v


def test_sharing_cost_is_the_double_loop(pages):
    f, w, g, v = (x.double() for x in pages)
    slow = torch.zeros(7, 9, dtype=torch.float64)
    for i in range(7):
        for q in range(9):
            for s in range(11):
                if f[i, s] > 0 and g[q, s] > 0:
                    slow[i, q] += f[i, s] * g[q, s] / (f[i, s] + g[q, s]) * (w[i, s] - v[q, s]) ** 2
    # each of 11 positive terms is rounded about six times to 24 bits
    torch.testing.assert_close(sharing_cost(*pages).double(), slow, rtol=2e-6, atol=0)


def test_sharing_cost_is_what_the_merge_adds_to_the_loss(normal, uneven):
    w, f = normal(5), uneven(5).clamp(min=1e-6)
    first, second = (w[:3], f[:3]), (w[3:], f[3:])
    added = group_loss(w, f) - group_loss(*first) - group_loss(*second)
    precision, moment = ([(f * w**k).sum().view(1, 1) for w, f in (first, second)] for k in (0, 1))
    mean = [m / p for m, p in zip(moment, precision, strict=True)]
    cost = float(sharing_cost(precision[0], mean[0], precision[1], mean[1]))
    assert cost == pytest.approx(added, rel=1e-5)  # float32 statistics


def test_sharing_cost_has_the_bits_of_plain_torch(pages, normal, uneven):
    assert torch.equal(sharing_cost(*pages), sharing_cost_reference(*pages))
    wide = uneven(40, 100), normal(40, 100), uneven(129, 100, seed=2), normal(129, 100, seed=2)
    assert torch.equal(sharing_cost(*wide), sharing_cost_reference(*wide))


@pytest.mark.parametrize(("size", "stride"), [(1, 16), (16, 16), (45, 16), (45, 7), (100, 1), (160, 32)])
def test_offset_cost_has_the_bits_of_plain_torch(normal, uneven, size, stride):
    tensor = uneven(size), normal(size)
    pool = uneven(161, seed=1), normal(161, seed=1)
    found = offset_cost(*tensor, *pool, stride)
    assert len(found) == (161 - size) // stride + 1
    assert torch.equal(found, offset_cost_reference(*tensor, *pool, stride))


def test_offset_cost_is_the_page_cost_of_each_window(normal, uneven):
    f, w, g, v = uneven(45), normal(45), uneven(200, seed=1), normal(200, seed=1)
    windows = (x.unfold(0, 45, 16).contiguous() for x in (g, v))
    expected = sharing_cost(f[None], w[None], *windows)[0]
    torch.testing.assert_close(offset_cost(f, w, g, v, 16), expected, rtol=1e-5, atol=0)  # another order of 45 sums


def test_zero_importance_costs_nothing():
    zero, w = torch.zeros(3, 8), torch.arange(24.0).view(3, 8)
    assert sharing_cost(zero, w, zero, -w).eq(0).all()
    assert sharing_cost(zero, w, torch.ones(3, 8), -w).eq(0).all()
    assert offset_cost(zero[0], w[0], zero.view(-1), w.view(-1), 4).eq(0).all()


def test_published_cost_is_the_double_loop_with_its_zeroing_rule(pages):
    f, w, g, v = (x.double() for x in pages)
    slow = torch.zeros(7, 9, dtype=torch.float64)
    for i in range(7):
        for q in range(9):
            for s in range(11):
                if f[i, s] > 0 and g[q, s] > 0:
                    slow[i, q] += (f[i, s] + g[q, s]) * (w[i, s] - v[q, s]) ** 2
    found = published_cost(*pages)
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-9)  # float64 sums of up to 1e3 that cancel
    assert found[2].eq(0).all()
    assert found[:, 3].eq(0).all()


def test_without_numba_the_same_numbers_come_out(pages, monkeypatch):
    with_numba = sharing_cost(*pages), offset_cost(*(x[0, :5] for x in pages[:2]), *(x.view(-1) for x in pages[2:]), 3)
    monkeypatch.setattr("weightbank.paging.cost.available", lambda: False)
    assert torch.equal(sharing_cost(*pages), with_numba[0])
    vectors = (*(x[0, :5] for x in pages[:2]), *(x.view(-1) for x in pages[2:]))
    assert torch.equal(offset_cost(*vectors, 3), with_numba[1])

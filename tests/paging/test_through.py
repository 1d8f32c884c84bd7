import pytest
import torch

from pooled import filled, importances, tasks
from weightbank.budget import expected_increase
from weightbank.cim import Cells, Chip, Device, select
from weightbank.distributions import Gaussian, Point
from weightbank.errors import LayoutError
from weightbank.layout import Layout
from weightbank.paging.through import Through, memory_layout, memory_of


def test_the_memory_is_one_vector_and_each_network_sees_its_part() -> None:
    pool = filled()
    layout = memory_layout(pool, 64)
    assert layout.size == pool.size == 5_200
    assert [entry.shape for entry in layout.entries] == [(81, 64), (16,)]
    law = Point(memory_of(pool), layout)
    for task in tasks():
        seen = Through(pool.generation.tenant(task.name), law)
        assert seen.layout.fingerprint == task.layout.fingerprint
        assert torch.equal(seen.mean(), pool[task.name].mean())
        assert torch.equal(seen.sample(2)[1], pool[task.name].mean())


def test_networks_see_the_same_draw_of_the_memory() -> None:
    pool = filled()
    layout = memory_layout(pool)
    law = Gaussian(layout, memory_of(pool), torch.rand(pool.size, generator=torch.Generator().manual_seed(1)), None)
    drawn = law.sample(3, generator=torch.Generator().manual_seed(2))
    for task in tasks():
        tenant = pool.generation.tenant(task.name)
        seen = Through(tenant, law)
        assert torch.equal(
            seen.sample(3, generator=torch.Generator().manual_seed(2))[2], tenant.placement.gather(drawn[2])
        )
        assert torch.equal(seen.variance(), tenant.placement.gather(law.variance()))


def test_summed_curvatures_price_the_memory_for_all_networks() -> None:
    """½ Σ h δ² over positions is the sum over networks: position by position against network by network."""
    pool, scores = filled(), importances()
    h = memory_of(pool, scores)
    cells = Cells.of(memory_layout(pool), Device(sigma=0.1, scale="channel"), memory_of(pool))
    chip = Chip(cells, select(h, 0.1, among=cells.on_device))
    apart = sum(
        expected_increase(scores[task.name], Through(pool.generation.tenant(task.name), chip)) for task in tasks()
    )
    assert expected_increase(h, chip) == pytest.approx(apart, rel=1e-5)


def test_vectors_of_strangers_and_short_memories_are_refused() -> None:
    pool = filled()
    with pytest.raises(LayoutError, match="tenants here: one, two, conv"):
        memory_of(pool, {"one": importances()["one"]})
    with pytest.raises(LayoutError, match="columns=0"):
        memory_layout(pool, 0)
    short = Point(torch.zeros(64), Layout.of(torch.nn.Linear(63, 1)))
    with pytest.raises(LayoutError, match="positions"):
        Through(pool.generation.tenant("conv"), short)

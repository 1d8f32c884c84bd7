import itertools
import math
from functools import partial

import pytest
import torch

from weightbank.cim import (
    MENU,
    Cells,
    Chip,
    Device,
    WriteVerify,
    Written,
    by_cell,
    by_significance,
    by_weight,
    compensate,
    graded,
    rank,
    read_first,
)
from weightbank.errors import DataError, LayoutError
from weightbank.layout import Entry, Layout

DEVICE, PROCESS = Device(4, 1, sigma=0.3), WriteVerify()
POLICIES = {
    "weight": by_weight,
    "cell": by_cell,
    "significance": by_significance,
    "graded": graded,
    "read first": read_first,
    "read first, graded": partial(read_first, tolerances=MENU[1:]),
}


def laid_out(size: int, device: Device = DEVICE) -> tuple[Cells, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layout = Layout((Entry("w", (2, size // 2), 0, torch.float32), Entry("b", (5,), size, torch.float32)))
    score = torch.rand(size + 5, generator=generator) ** 6
    return Cells.of(layout, device, torch.randn(size + 5, generator=generator)), score


def risk(law: Chip | Written, score: torch.Tensor) -> float:
    return 0.5 * float((score.double() * law.variance().double()).sum())


@pytest.mark.parametrize("name", POLICIES)
def test_budgets_are_kept_and_used(name):
    cells, score = laid_out(4000)
    spend = POLICIES[name](cells, score, PROCESS)
    for budget in (0.0, 0.01, 0.1, 0.5, 1.0):
        found = spend(budget)
        assert found.write_cycles <= budget + 1 / 16_000
        assert found.write_cycles >= 0.99 * budget - 1e-3
        assert not found.rule.read[..., 4000:].any()
        effort, full = found.law.effort, PROCESS.outcome(0.3).effort(16_000)
        assert found.write_cycles == pytest.approx(effort.write_cycles(full), abs=1e-9)
        assert found.total_write_cycles == pytest.approx(effort.total_write_cycles(full), abs=1e-9)
        assert found.reads == pytest.approx(effort.reads / 16_000)
        assert found.fraction == pytest.approx(float(found.rule.read[..., :4000].double().mean()))


def test_finer_choices_leave_less_loss():
    cells, score = laid_out(4000)
    for budget in (0.01, 0.1):
        left = {name: risk(policy(cells, score, PROCESS)(budget).law, score) for name, policy in POLICIES.items()}
        assert left["cell"] < left["weight"]
        assert left["graded"] < left["cell"]
        assert left["read first"] < left["cell"]
        assert left["read first, graded"] <= left["graded"]
        assert left["cell"] <= left["significance"]


def test_graded_tolerances_are_the_best_of_all_assignments():
    """No assignment of the menu to four cells leaves less loss at no more effort (all 6^4 tried)."""
    score = torch.tensor([1.0, 0.2, 0.02, 0.001])
    layout = Layout((Entry("w", (1, 4), 0, torch.float32),))
    cells = Cells.of(layout, Device(1, 1, sigma=0.3), torch.ones(4))
    outcomes = [PROCESS.outcome(0.3, limit=t, tolerance=0.06 if math.isinf(t) else t) for t in MENU]
    for budget in (0.02, 0.1, 0.4, 0.9):
        law = graded(cells, score, PROCESS)(budget).law
        found, pulses = risk(law, score), law.effort.pulses
        for choice in itertools.product(range(len(MENU)), repeat=4):
            if sum(outcomes[k].pulses for k in choice) <= pulses + 1e-9:
                other = sum(0.125 * float(s) * outcomes[k].variance for s, k in zip(score, choice, strict=True))
                assert other >= found * (1 - 1e-6)


@pytest.mark.parametrize("policy", [graded, partial(read_first, tolerances=MENU[1:])])
def test_weights_that_no_example_felt_are_verified_when_the_budget_reaches_them(policy):
    """A quarter of the weights has no curvature: all are read when all write cycles are spent, none at a hundredth."""
    cells, score = laid_out(4000)
    blank = torch.arange(len(score)) % 4 == 0
    score = score.masked_fill(blank, 0.0)
    blank &= cells.on_device
    little, all_ = (policy(cells, score, PROCESS)(budget) for budget in (0.01, 1.0))
    assert not bool(little.rule.read[:, blank].any())
    assert bool(all_.rule.read[0, blank].all())
    least = policy(cells, score, PROCESS, floor=0.0)(1.0)
    assert not bool(least.rule.read[:, blank].any())
    # The floor is that of curvatures clamped by hand.
    mean = float(score[cells.on_device].double().mean())
    by_hand = policy(cells, score.double().clamp(min=0.05 * mean), PROCESS, floor=0.0)(0.3)
    assert torch.equal(policy(cells, score.double(), PROCESS, floor=0.05)(0.3).rule.grades, by_hand.rule.grades)
    with pytest.raises(DataError, match="floor=-1"):
        policy(cells, score, PROCESS, floor=-1.0)


def test_a_price_on_reads_saves_reads():
    cells, score = laid_out(4000)
    free, dear = (graded(cells, score, PROCESS, read_price=price)(0.1) for price in (0.0, 0.5))
    assert dear.reads < free.reads
    assert dear.write_cycles == pytest.approx(free.write_cycles, abs=2e-3)


def test_read_first_verifies_only_harmful_errors():
    cells, score = laid_out(4000)
    found = read_first(cells, score, PROCESS)(0.02)
    _, ledger = found.law.write(generator=torch.Generator().manual_seed(1))
    read = found.rule.read
    # Most cells that were read were within their limit; those rewritten are within the tolerance.
    assert float((ledger.pulses[read] == 1).double().mean()) > 0.8
    rewritten = ledger.pulses > 1
    assert float(ledger.errors[rewritten].abs().max()) <= PROCESS.tolerance
    full = PROCESS.outcome(0.3).effort(16_000)
    counted = found.law.counted(5, generator=torch.Generator().manual_seed(2))
    assert counted.write_cycles(full) == pytest.approx(0.02, rel=0.1)  # 5 chips, about 4 % of error


def test_two_widths_count_the_matching_loop():
    cells, score = laid_out(400)
    found = by_weight(cells, score)(0.25)
    assert isinstance(found.law, Chip)
    pulses = WriteVerify.matching(DEVICE).outcome(0.3).pulses
    assert found.write_cycles == found.fraction == 0.25
    assert found.total_write_cycles == pytest.approx((1 + 0.25 * (pulses - 1)) / pulses)
    assert found.reads == pytest.approx(0.25 * pulses)


def test_an_order_and_its_scores_verify_the_same_weights():
    cells, _ = laid_out(400)
    score = torch.rand(405, generator=torch.Generator().manual_seed(4))
    order = rank(score * cells.scale.square())
    a, b = (by_weight(cells, ranked)(0.1).law.verified for ranked in (score, order))
    assert torch.equal(a, b)
    assert int(a.sum()) == 40


def test_most_significant_cells_come_first():
    cells, score = laid_out(400)
    rows = by_significance(cells, score)(0.375).law.verified[:, :400].double().mean(1)
    assert rows.tolist() == [1.0, 0.5, 0.0, 0.0]


def test_compensation_adds_reads_but_no_pulse():
    cells, score = laid_out(400)
    base, found = graded(cells, score, PROCESS)(0.05), compensate(cells, score, PROCESS, share=0.5)(0.05)
    assert found.write_cycles == base.write_cycles
    assert found.reads == pytest.approx(base.reads + 0.5 * 3 / 4)
    error = found.law.sample(8, generator=torch.Generator().manual_seed(0)) - cells.theta
    assert 0.5 * float((score * error.square().mean(0)).sum()) < 0.7 * risk(base.law, score)


def test_policies_say_what_they_cannot_use():
    cells, score = laid_out(400)
    with pytest.raises(LayoutError, match="pass curvatures"):
        graded(cells, rank(score), PROCESS)
    with pytest.raises(LayoutError, match=r"\(405,\)"):
        by_weight(cells, score[:3])
    fitted, _ = laid_out(400, Device(sigma="pcm_joshi", verified_sigma=0.01))
    with pytest.raises(DataError, match="use by_weight or by_cell"):
        read_first(fitted, score, PROCESS)
    assert by_cell(fitted, score)(0.1).fraction == pytest.approx(0.1)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("budget", [-0.1, 1.5, math.nan])
def test_budgets_out_of_range_are_refused(name, budget):
    cells, score = laid_out(40)
    with pytest.raises(DataError, match="0 to 1"):
        POLICIES[name](cells, score, PROCESS)(budget)

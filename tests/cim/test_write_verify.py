import math
from functools import partial

import pytest
import torch

import weightbank.cim.search as search_module
from weightbank.cim import (
    Device,
    Plan,
    WriteVerify,
    by_cell,
    compare,
    compensate,
    graded,
    mean_over_chips,
    rank,
    read_first,
    write_verify,
)
from weightbank.errors import CorruptError, DataError, LayoutError, ResumeError
from weightbank.evaluation import Estimate
from weightbank.store.arrays import save_arrays
from weightbank.task import Task

NOISY = Device(4, 1, sigma=0.5)


@pytest.fixture(scope="module")
def curvature(trained):
    """The Gauss-Newton diagonal by one Jacobian per example."""
    theta = trained.theta()
    total = torch.zeros_like(theta)
    for x, _ in trained.batches("train"):
        jacobian = torch.func.jacrev(lambda t, x=x: trained.predict(t, x))(theta)
        p = trained.predict(theta, x).softmax(-1)
        mean = torch.einsum("nc,ncp->np", p, jacobian)
        total += (torch.einsum("nc,ncp->np", p, jacobian.square()) - mean.square()).sum(0)
    return (total / 400).detach()


@pytest.fixture(scope="module")
def plan(trained, curvature):
    return write_verify(trained, NOISY, curvature, max_drop=0.01, step=0.02)


def test_a_plan_meets_its_target_on_fresh_chips(trained, plan):
    assert plan.met
    assert 0 < plan.fraction < 1
    assert plan.write_cycles == plan.fraction
    fresh = mean_over_chips(trained, plan.apply(trained), passes=50, generator=torch.Generator().manual_seed(77))
    assert fresh.n == 600
    assert abs(fresh.mean - plan.accuracy.mean) < 4 * math.hypot(fresh.stderr, plan.accuracy.stderr)
    assert plan.clean - fresh.mean < plan.max_drop + 3 * fresh.stderr
    exact = torch.cat([trained.predict(trained.theta(), x).argmax(1) == y for x, y in trained.batches("test")])
    assert plan.clean == pytest.approx(float(exact.double().mean()), abs=1e-12)


def test_a_plan_is_not_much_larger_than_needed(trained, plan):
    failed = [trial.budget for trial in plan.history if not trial.passed]
    held = [trial.budget for trial in plan.history if trial.passed and not trial.fresh]
    assert min(held) <= plan.history[-1].budget
    assert max(failed) >= min(held) * 0.89 - 0.02 - 1e-9
    assert len(plan.history) < 10


def test_each_trial_is_decided_as_stated(plan):
    for trial in plan.history:
        assert trial.passes in (2, 4, 8, 16)
        if trial.passed:
            assert trial.drop.mean + 1.6 * trial.drop.stderr <= plan.max_drop
        elif trial.passes < 16:
            assert trial.drop.mean - 1.6 * trial.drop.stderr > plan.max_drop
    assert plan.history[-1].fresh
    assert plan.history[-1].passed


def test_equal_calls_give_equal_plans(trained, curvature, plan):
    again = write_verify(trained, NOISY, curvature, max_drop=0.01, step=0.02)
    assert torch.equal(again.verified, plan.verified)
    assert again.accuracy == plan.accuracy
    other = write_verify(
        trained, NOISY, curvature, max_drop=0.01, step=0.02, generator=torch.Generator().manual_seed(9)
    )
    assert other.accuracy != plan.accuracy


def test_an_order_of_weights_is_enough(trained, curvature, plan):
    theta = trained.theta()
    scale = NOISY.scales(theta, trained.layout)
    order = rank(curvature * scale.square())
    by_order = write_verify(trained, NOISY, order, max_drop=0.01, step=0.02)
    assert by_order.met
    assert abs(by_order.fraction - plan.fraction) < 0.2 * plan.fraction + 0.04
    worse = write_verify(trained, NOISY, torch.flip(order, (0,)), max_drop=0.01, step=0.02)
    assert worse.fraction > 1.5 * plan.fraction


def test_without_errors_nothing_is_verified(trained, curvature):
    plan = write_verify(trained, Device(sigma=1e-6, verified_sigma=1e-7), curvature)
    assert plan.met
    assert plan.fraction == 0
    assert plan.accuracy.mean == plan.clean


def test_what_cannot_be_met_is_said(trained, curvature):
    plan = write_verify(trained, Device(2, 1, sigma=2.0, verified_sigma=1.9), curvature, step=0.1)
    assert not plan.met
    assert plan.fraction == 1
    assert "NOT within 0.005" in str(plan)


@pytest.mark.parametrize("policy", [by_cell, graded, read_first, partial(compensate, share=0.3)])
def test_every_policy_makes_a_plan_that_comes_back_from_disk(policy, trained, curvature, plan, tmp_path):
    found = write_verify(trained, NOISY, curvature, max_drop=0.01, step=0.05, policy=policy, passes=4)
    assert found.met
    assert found.write_cycles < plan.write_cycles
    found.save(tmp_path / "plan.safetensors")
    loaded = Plan.load(tmp_path / "plan.safetensors")
    laws = {"found": found.apply(trained), "loaded": loaded.apply(trained)}
    assert compare(trained, laws, passes=2).difference["loaded"] == Estimate(0.0, 0.0, 24)
    assert torch.equal(loaded.rule.grades, found.rule.grades)
    assert loaded.history == found.history
    assert str(loaded) == str(found)
    for name in ("device", "process", "clean", "write_cycles", "total_write_cycles", "reads", "met", "fingerprint"):
        assert getattr(loaded, name) == getattr(found, name)


def test_a_stopped_search_goes_on_where_it_was(trained, curvature, plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.safetensors"
    decide, decided = search_module.Search._decide, []

    def stopping(self, found, generator, least):
        if len(decided) == 2:
            raise KeyboardInterrupt
        decided.append(found.fraction)
        return decide(self, found, generator, least)

    options = {"max_drop": 0.01, "step": 0.02, "path": path}
    monkeypatch.setattr(search_module.Search, "_decide", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_verify(trained, NOISY, curvature, **options)
    monkeypatch.undo()

    counted = []
    monkeypatch.setattr(search_module.Search, "_decide", lambda *a, **k: counted.append(1) or decide(*a, **k))
    resumed = write_verify(trained, NOISY, curvature, **options)
    assert resumed.history == plan.history
    assert resumed.accuracy == Estimate(plan.accuracy.mean, plan.accuracy.stderr, plan.accuracy.n)
    assert torch.equal(resumed.verified, plan.verified)
    assert len(counted) == len(plan.history) - 2

    counted.clear()
    finished = write_verify(trained, NOISY, curvature, **options)
    assert torch.equal(finished.verified, plan.verified)
    assert not counted
    with pytest.raises(ResumeError, match="of another search"):
        write_verify(trained, NOISY, curvature, **(options | {"max_drop": 0.02}))
    with pytest.raises(ResumeError, match="of another search"):
        write_verify(trained, NOISY, curvature, policy=by_cell, **options)


def test_foreign_files_are_no_plans(tmp_path):
    path = tmp_path / "other.safetensors"
    save_arrays(path, {"grades": torch.zeros(3, dtype=torch.uint8)}, {"weightbank": "something else"})
    with pytest.raises(CorruptError, match="something else"):
        Plan.load(path)
    save_arrays(path, {"grades": torch.zeros(3, dtype=torch.uint8)}, {"weightbank": "weightbank write-verify plan 1"})
    with pytest.raises(CorruptError, match="cannot be read"):
        Plan.load(path)
    text = '{"limits": [1], "tolerances": [0.1], "process": {"pulse": "none"}}'
    metadata = {"weightbank": "weightbank write-verify plan 1", "plan": text}
    save_arrays(path, {"grades": torch.zeros(3)}, metadata)
    with pytest.raises(CorruptError, match="cannot be read"):
        Plan.load(path)


def test_a_plan_fits_its_own_model_only(trained, plan):
    from torch import nn
    from torch.nn import functional as F

    x, y = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    other = Task("other", nn.Linear(6, 4), F.cross_entropy, (x, y), (x, y))
    with pytest.raises(LayoutError, match="28 weights"):
        plan.apply(other)


def test_numbers_out_of_range_are_refused(trained, curvature, tmp_path):
    for bad in ({"max_drop": 0}, {"step": 0}, {"confidence": 0.3}, {"passes": 1}):
        with pytest.raises(DataError, match="wanted a positive drop"):
            write_verify(trained, NOISY, curvature, **bad)
    with pytest.raises(LayoutError, match=r"\(224,\)"):
        write_verify(trained, NOISY, curvature[:5])
    device = Device(sigma=lambda g: 0.1 + g, verified_sigma=0.01)
    with pytest.raises(DataError, match="cannot be stored"):
        write_verify(trained, device, curvature, path=tmp_path / "plan")


def test_a_named_process_is_simulated(trained, curvature):
    process = WriteVerify("incremental", tolerance=0.2, gain=0.6)
    found = write_verify(trained, NOISY, curvature, max_drop=0.02, step=0.25, process=process, passes=4)
    assert found.process == process
    assert found.met

"""The sampled Gauss-Newton diagonal: unbiased, its error falls as 1/√n, and it stops when two halves agree."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import TASKS, classes, mlp, mlp_task, numbers, seeded, task_of
from torch import nn

from weightbank.curvature import ggn, ggn_sampled
from weightbank.curvature.ggn_sampled import _Halves
from weightbank.errors import DataError
from weightbank.task import Task


def estimates(task, count, images, **more):
    return torch.stack([ggn_sampled(task, images=images, generator=seeded(s), **more) for s in range(count)])


def z_scores(sampled, exact):
    """(mean - exact) / its standard error for all scores that vary."""
    stderr = sampled.std(0) / len(sampled) ** 0.5
    varies = stderr > 1e-12 * exact.max()
    torch.testing.assert_close(sampled.mean(0)[~varies], exact[~varies], rtol=1e-9, atol=1e-14)
    return ((sampled.mean(0) - exact)[varies] / stderr[varies]).abs()


@pytest.mark.parametrize("probe", ["signs", "labels"])
@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_estimates_average_to_the_exact_diagonal_at_every_batch_size(probe, batch_size):
    task = mlp_task(batch_size=11)
    sampled = estimates(task, 60, 22, probe=probe, batch_size=batch_size)
    # Skewed squares (chi-square with few degrees of freedom, 60 draws): |z| > 6 of 64 scores has a chance below 1e-3.
    assert float(z_scores(sampled, ggn(task)).max()) < 6


@pytest.mark.parametrize("name", TASKS)
def test_every_architecture_is_estimated_without_bias(name):
    task = TASKS[name]()
    exact, sampled = ggn(task), ggn_sampled(task, images=1_200, batch_size=4)
    error = float((sampled - exact).norm() / exact.norm())
    # 300 squared gradients or more: each score is off by √(2/300) = 0.08 of itself (standard deviation) or less for
    # sign probes, and errors of the few large scores that make up the norm move together: three of these.
    assert error < 0.25


@pytest.mark.parametrize(
    ("loss", "target"),
    [(F.mse_loss, numbers(11, 3)), (F.binary_cross_entropy_with_logits, numbers(11, 3).sigmoid())],
)
@pytest.mark.parametrize("probe", ["signs", "labels"])
def test_regression_and_binary_losses_are_estimated_without_bias(loss, target, probe):
    task = task_of(mlp(), numbers(11, 4), target, loss)
    exact, sampled = ggn(task), ggn_sampled(task, images=1_200, batch_size=4, probe=probe)
    assert float((sampled - exact).norm() / exact.norm()) < 0.25  # as above


@pytest.mark.slow
def test_class_weights_and_ignored_labels_are_estimated_without_bias():
    weight = torch.tensor([0.3, 2.0, 1.0], dtype=torch.float64)
    for loss in (nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1), nn.CrossEntropyLoss(ignore_index=1)):
        task = mlp_task(loss=loss)
        for probe in ("signs", "labels"):
            sampled = ggn_sampled(task, images=1_200, batch_size=4, probe=probe)
            assert float((sampled - ggn(task)).norm() / ggn(task).norm()) < 0.25  # as above


@pytest.mark.slow
def test_error_falls_as_one_over_root_n():
    task = mlp_task(batch_size=11)
    exact = ggn(task)
    few, many = (estimates(task, 60, images, batch_size=4) - exact for images in (11, 88))
    ratio = float(few.square().mean() / many.square().mean())
    assert 4 < ratio < 16  # 8 expected, passes being independent; 60 draws fix each mean square to about 25 %


@pytest.mark.slow
def test_signs_are_less_noisy_than_labels_for_a_sure_model():
    model = mlp()
    with torch.no_grad():
        model[-1].weight.mul_(12)
    task = task_of(model, numbers(11, 4), classes(11))
    assert float(task.predict(task.theta(), numbers(11, 4)).softmax(-1).amax(-1).mean()) > 0.99
    exact = ggn(task)
    signs, labels = (float((estimates(task, 40, 22, probe=p) - exact).square().mean()) for p in ("signs", "labels"))
    assert signs < 0.1 * labels  # measured: root mean square errors of 0.15 and 8 times the scores


def test_same_generator_seed_same_scores_and_none_is_seed_zero():
    task = mlp_task()
    assert torch.equal(ggn_sampled(task, images=20), ggn_sampled(task, images=20))
    assert torch.equal(
        ggn_sampled(task, images=20, generator=seeded(3)), ggn_sampled(task, images=20, generator=seeded(3))
    )
    assert not torch.equal(ggn_sampled(task, images=20), ggn_sampled(task, images=20, generator=seeded(3)))


class Counted(list):
    """A list of batches that counts the examples it hands out."""

    seen = 0

    def __iter__(self):
        for x, y in list.__iter__(self):
            self.seen += len(y)
            yield x, y


def counted_task(size):
    x, y = numbers(size, 4), classes(size)
    batches = Counted([(x[i : i + 32], y[i : i + 32]) for i in range(0, size, 32)])
    return Task("counted", mlp(), F.cross_entropy, batches, [(x, y)]), batches


def test_stops_at_six_hundred_images_when_little_agreement_will_do():
    task, batches = counted_task(5_000)
    ggn_sampled(task, overlap=0.01)
    assert 600 <= batches.seen < 700


def test_repeats_a_small_data_set_until_six_thousand_images():
    task, batches = counted_task(700)
    ggn_sampled(task, overlap=1.0, top=1e-9 + 0.5)
    assert batches.seen <= 9 * 700


def test_reads_as_many_images_as_asked():
    task, batches = counted_task(700)
    ggn_sampled(task, images=1_000, batch_size=10)
    assert 1_000 <= batches.seen < 1_032


def test_halves_share_what_both_name():
    halves = _Halves(10, 0.3, seeded(0))
    first = torch.tensor([9.0, 8, 7.5, 1, 1, 1, 1, 1, 1, 1])
    second = torch.tensor([9.0, 8, 1, 7, 1, 1, 1, 1, 1, 1])
    assert halves.share(first, 299) == 0.0
    assert halves.share(first, 300) == 0.0
    assert halves.share(first + second, 599) == 0.0
    assert halves.share(first + second, 600) == pytest.approx(2 / 3)
    assert halves.share(2 * (first + second), 1_200) == 1.0


def test_halves_of_a_large_model_are_compared_on_a_sample(monkeypatch):
    monkeypatch.setattr(import_module("weightbank.curvature.ggn_sampled"), "COMPARED", 50)
    halves = _Halves(100_000, 0.1, seeded(0))
    assert halves.share(torch.rand(100_000, generator=seeded(1)), 300) == 0.0
    assert halves._first.numel() == 50


def test_dead_weights_do_not_count_as_important():
    halves = _Halves(100, 0.5, seeded(0))
    total = torch.zeros(100)
    total[:10] = torch.arange(1.0, 11)
    halves.share(total, 300)
    assert halves.share(2 * total, 600) == 1.0  # 10 alive, not 50


def test_fractions_out_of_range_are_refused():
    with pytest.raises(DataError, match="top=0"):
        ggn_sampled(mlp_task(), top=0)
    with pytest.raises(DataError, match="overlap=2"):
        ggn_sampled(mlp_task(), overlap=2)

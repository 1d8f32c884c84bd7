import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_laws import Diagonal, Streamed, gaussian_blobs
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from weightbank.distributions.point import Point
from weightbank.errors import DataError, LayoutError
from weightbank.evaluation import evaluate
from weightbank.layout import Layout
from weightbank.task import Task, evaluating


def stored(task: Task, draws: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The obvious twin: probabilities (S, N, C) of every draw, all kept."""
    found = []
    for theta in draws:
        with torch.no_grad():
            found.append(task.predict(theta, x).double().softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize("kind", [Diagonal, Streamed])
def test_streamed_averages_are_those_of_all_predictions_stored(task, kind):
    law = kind(task.theta(), 0.3, task.layout)
    x, y = gaussian_blobs(101, 2)
    report = evaluate(task, law, 8, generator=torch.Generator().manual_seed(5))
    p = stored(task, law.sample(8, generator=torch.Generator().manual_seed(5)), x)
    mean = p.mean(0)
    # Batches of 32 and one of 101 give single-precision outputs that differ in the last bits.
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(report.probabilities, mean, **close)
    torch.testing.assert_close(report.variance, p.var(0), **close)
    whole = torch.special.entr(mean).sum(-1)
    torch.testing.assert_close(report.entropy, whole, **close)
    torch.testing.assert_close(report.mutual_information, whole - torch.special.entr(p).sum(-1).mean(0), **close)
    assert torch.equal(report.targets, y)
    assert report.samples == 8

    accuracies = (p.argmax(-1) == y).double().mean(-1).numpy()
    assert report.draws["accuracy"].values == pytest.approx(accuracies.tolist(), abs=1e-12)
    assert report.draws["accuracy"].stderr == pytest.approx(accuracies.std(ddof=1) / math.sqrt(8), abs=1e-12)
    assert report.draws["nll"].values == pytest.approx([log_loss(y, one) for one in p], abs=1e-6)
    assert report.accuracy.mean == float((mean.argmax(-1) == y).double().mean())
    assert report.nll.mean == pytest.approx(log_loss(y, mean), abs=1e-6)
    assert report.brier.mean == pytest.approx(float(((mean - torch.eye(3)[y]) ** 2).sum(-1).mean()), abs=1e-6)


def test_averaging_never_loses_to_the_mean_draw(task, law):
    # Jensen: -log and the squared distance are convex in p.
    report = evaluate(task, law, 10)
    assert report.nll.mean <= report.draws["nll"].mean
    assert report.brier.mean <= report.draws["brier"].mean
    assert float(report.mutual_information.min()) >= 0


def test_a_flat_vector_is_the_model_in_evaluation_mode(task):
    task.model.train()
    report = evaluate(task, task.theta(), samples=30)
    with torch.no_grad(), evaluating(task.model):
        plain = torch.cat([task.model(x) for x, _ in task.batches("test")]).double().softmax(-1)
    torch.testing.assert_close(report.probabilities, plain, rtol=0, atol=1e-15)
    assert report.samples == 1
    assert report.draws["accuracy"].stderr is None
    assert report.draws["nll"].mean == pytest.approx(report.nll.mean, rel=1e-12)
    assert not report.variance.any()
    assert not report.mutual_information.any()
    assert all(module.training for module in task.model.modules())
    again = evaluate(task, Point(task.theta(), task.layout), 30)
    assert again.samples == 1
    assert torch.equal(again.probabilities, report.probabilities)


def test_two_calls_agree_and_another_seed_does_not(task, law):
    first, second = evaluate(task, law, 5), evaluate(task, law, 5)
    assert torch.equal(first.probabilities, second.probabilities)
    assert first.to_dict() == second.to_dict()
    seeded = evaluate(task, law, 5, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first.probabilities, seeded.probabilities)


def test_nothing_of_the_callers_moves(task, law):
    x, y = gaussian_blobs(40, 3)
    held = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, generator=held)
    held_before, weights, before = held.get_state(), task.theta(), torch.get_rng_state()
    evaluate(task, law, 3, data=loader, ood=loader)
    assert torch.equal(held.get_state(), held_before)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(task.theta(), weights)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_linear_gaussian_predictions_have_their_closed_form():
    # y = x w with w ~ N(m, s² I): mean x m, variance s² |x|².
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    model = nn.Linear(3, 1, bias=False)
    task = Task("linear", model, lambda out, y: F.mse_loss(out[:, 0], y), (x, x.sum(-1)), (x, x.sum(-1)))
    mean, s, samples = torch.tensor([1.0, 0.5, 2.0]), 0.2, 2000
    report = evaluate(task, Diagonal(mean, s, task.layout), samples)
    variance = s**2 * x.square().sum(-1).double()
    gap = (report.prediction - (x @ mean).double()).abs() / (variance / samples).sqrt()
    assert gap.max() < 4  # standard errors; the 40 gaps are functions of three normal means
    # A variance of S normal numbers has relative standard error √(2 / S) = 3 %.
    torch.testing.assert_close(report.variance, variance, rtol=4 * math.sqrt(2 / samples), atol=0)

    errors = (x @ mean - x.sum(-1)).double().square()
    expected = float((errors + variance).mean())  # E over w of the mean squared error of one draw
    assert report.draws["loss"].mean == pytest.approx(expected, abs=4 * report.draws["loss"].stderr)
    assert report.rmse.mean == pytest.approx(math.sqrt(float(errors.mean())), abs=0.01)
    assert report["variance"].mean == pytest.approx(float(variance.mean()), rel=0.1)


def test_regression_of_one_draw_is_sklearns_and_the_loss_is_over_examples():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    model = nn.Linear(3, 2)
    task = Task("two numbers", model, F.l1_loss, (x, y), (x, y), batch_size=16)  # a last batch of 2
    report = evaluate(task, task.theta())
    with torch.no_grad():
        residual = (model(x) - y).double()
    assert report.rmse.mean == pytest.approx(math.sqrt(float(residual.square().mean())), rel=1e-6)
    assert report.draws["loss"].mean == pytest.approx(float(residual.abs().mean()), rel=1e-6)
    squared = residual.square().mean(-1).numpy()
    wanted = squared.std(ddof=1) / math.sqrt(50) / (2 * math.sqrt(squared.mean()))
    assert report.rmse.stderr == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(DataError, match="no probabilities"):
        report.probabilities
    with pytest.raises(DataError, match="without 'accuracy'; there are: rmse, variance"):
        report.accuracy


def test_objects_with_logits_and_log_probabilities_read_as_logits(task, law):
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module, end) -> None:
            super().__init__()
            self.inner, self.end = inner, end

        def forward(self, x: torch.Tensor):
            return self.end(self.inner(x))

    plain = evaluate(task, task.theta()).probabilities
    for end in (lambda out: SimpleNamespace(logits=out), lambda out: out.log_softmax(-1)):
        wrapped = Task("wrapped", Wrapped(task.model, end), F.cross_entropy, task.train, task.test)
        torch.testing.assert_close(evaluate(wrapped, task.theta()).probabilities, plain, rtol=0, atol=1e-6)


def test_foreign_inputs_are_told_apart_as_sklearn_says(task, law):
    far = 0.2 * torch.randn(70, 4, generator=torch.Generator().manual_seed(8))
    x, _ = gaussian_blobs(101, 2)
    report = evaluate(task, law, 6, ood=far)
    draws = law.sample(6, generator=torch.Generator().manual_seed(0))
    known, foreign = stored(task, draws, x), stored(task, draws, far)
    truth = np.r_[np.zeros(101), np.ones(70)]

    def scores(p):
        whole = torch.special.entr(p.mean(0)).sum(-1)
        return whole, whole - torch.special.entr(p).sum(-1).mean(0), 1 - p.mean(0).amax(-1)

    for ending, a, b in zip(("", "_mutual_information", "_confidence"), scores(known), scores(foreign), strict=True):
        wanted = roc_auc_score(truth, torch.cat([a, b]).numpy())
        # One pair that changes places through rounding is 1 / (101 * 70).
        assert report["auroc" + ending].mean == pytest.approx(wanted, abs=3e-4)
    torch.testing.assert_close(report.foreign_entropy, scores(foreign)[0], rtol=0, atol=1e-6)
    single = [torch.special.entr(torch.cat([a, b])).sum(-1) for a, b in zip(known, foreign, strict=True)]
    assert report.draws["auroc"].values == pytest.approx([roc_auc_score(truth, s.numpy()) for s in single], abs=3e-4)


@pytest.mark.parametrize("together", [2, 3, 100])
def test_many_draws_at_once_give_the_same_numbers(task, together):
    law = Streamed(task.theta(), 0.3, task.layout)
    far = torch.randn(20, 4, generator=torch.Generator().manual_seed(8))
    alone = evaluate(task, law, 7, ood=far)
    grouped = evaluate(task, law, 7, ood=far, vectorize=together)
    torch.testing.assert_close(grouped.probabilities, alone.probabilities, rtol=0, atol=1e-6)
    torch.testing.assert_close(grouped.variance, alone.variance, rtol=0, atol=1e-6)
    assert grouped.draws["nll"].values == pytest.approx(alone.draws["nll"].values, abs=1e-5)
    assert grouped.draws["auroc"].values == pytest.approx(alone.draws["auroc"].values, abs=1e-2)


def test_many_draws_of_a_regression_have_their_own_losses():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    task = Task("linear", nn.Linear(3, 1), F.mse_loss, (x, x[:, :1]), (x, x[:, :1]), batch_size=8)
    law = Diagonal(task.theta(), 0.5, task.layout)
    alone, grouped = evaluate(task, law, 5), evaluate(task, law, 5, vectorize=2)
    assert grouped.draws["loss"].values == pytest.approx(alone.draws["loss"].values, rel=1e-5)
    assert alone.draws["loss"].values == pytest.approx([rmse**2 for rmse in alone.draws["rmse"].values], rel=1e-5)


@pytest.mark.parametrize("together", [None, 4])
def test_it_stops_at_the_first_draw_that_is_precise_enough(task, law, together):
    full = evaluate(task, law, 60).draws["accuracy"].values
    wanted = next(n for n in range(5, 61) if np.std(full[:n], ddof=1) / math.sqrt(n) < 0.02)
    assert 5 < wanted < 60
    report = evaluate(task, law, 60, stderr=0.02, vectorize=together)
    assert report.samples == wanted
    assert report.draws["accuracy"].values == pytest.approx(full[:wanted], abs=1e-12)
    assert evaluate(task, law, 60, stderr=10.0).samples == 5


def test_a_law_over_other_weights_is_refused(task):
    other = nn.Linear(4, 3)
    layout = Layout.of(other)
    with pytest.raises(LayoutError, match=f"{layout.size:,} weights.*{task.layout.size:,}"):
        evaluate(task, Point(layout.ravel(other), layout))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("thing", ["swag", None, nn.Linear(4, 3)])
def test_what_is_no_law_is_refused(task, thing):
    with pytest.raises(LayoutError, match=f"a {type(thing).__name__} came; wanted a law"):
        evaluate(task, thing)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"samples": 2.5},
        {"samples": "3"},
        {"vectorize": 0},
        {"bins": 0},
        {"stderr": 0.0},
        {"stderr": "small"},
        {"batch_norm_batches": 0},
        {"batch_norm": "refreshed"},
    ],
)
def test_arguments_out_of_range_are_named(task, law, wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))!r}"):
        evaluate(task, law, **wrong)


def test_an_interrupt_passes_through(task):
    class Interrupted(Streamed):
        def draws(self, count, *, generator=None):
            yield self._mean
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Interrupted(task.theta(), 0.1, task.layout), 3)

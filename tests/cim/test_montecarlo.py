import math
from statistics import NormalDist

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from weightbank.cim import Chip, Device, compare, each_chip, mean_over_chips, program
from weightbank.cim.montecarlo import Passes, Scorer, student
from weightbank.distributions import Point
from weightbank.errors import DataError, LayoutError
from weightbank.task import Task, TensorBatches

NOISY = Device(4, 1, sigma=0.5)


def one_by_one(task: Task, theta: torch.Tensor) -> float:
    right = [(task.predict(theta, x).argmax(1) == y).double() for x, y in task.batches("test")]
    return float(torch.cat(right).mean())


def test_each_chip_is_evaluated_whole(trained):
    chip = program(trained, NOISY)
    found = each_chip(trained, chip, 4, generator=torch.Generator().manual_seed(3))
    draws = chip.sample(4, generator=torch.Generator().manual_seed(3))
    assert found.values == pytest.approx([one_by_one(trained, theta) for theta in draws], abs=1e-12)
    assert found.min == min(found.values)


def test_a_mean_over_chips_gives_every_batch_its_own(trained):
    chip = program(trained, NOISY)
    draws = iter(chip.sample(24, generator=torch.Generator().manual_seed(3)))
    scores = torch.zeros(2, 12, dtype=torch.float64)
    for number in range(2):
        for batch, (x, y) in enumerate(trained.batches("test")):
            scores[number, batch] = float((trained.predict(next(draws), x).argmax(1) == y).double().mean())
    found = mean_over_chips(trained, chip, passes=2, generator=torch.Generator().manual_seed(3))
    assert found.n == 24
    assert found.mean == pytest.approx(float(scores.mean()), abs=1e-12)
    assert found.stderr == pytest.approx(math.sqrt(float((scores.var(0) / 2 / 144).sum())), rel=1e-9)


def test_its_standard_error_is_the_spread_over_seeds(trained):
    """60 repetitions: the mean squared error stated is the variance found, to 4 times √(2/59)."""
    chip = program(trained, NOISY)
    found = [mean_over_chips(trained, chip, passes=2, generator=torch.Generator().manual_seed(s)) for s in range(60)]
    means = torch.tensor([estimate.mean for estimate in found], dtype=torch.float64)
    stated = sum(estimate.stderr**2 for estimate in found) / 60
    assert abs(float(means.var()) / stated - 1) < 4 * math.sqrt(2 / 59)
    # and one pass of fresh chips knows the mean far better than one whole chip
    whole = each_chip(trained, chip, 30)
    assert whole.stderr * math.sqrt(30) > 2 * math.sqrt(2) * math.sqrt(stated)
    both = math.hypot(whole.stderr, float(means.std()) / math.sqrt(60))
    assert abs(whole.mean - float(means.mean())) < 4 * both


def test_accuracy_of_one_neuron_is_the_normal_tail():
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(400, 30, generator=generator), torch.randn(1, 30, generator=generator)
    model = nn.Linear(30, 1, bias=False)
    model.weight.data = w

    class TwoClasses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = model

        def forward(self, x):
            z = self.linear(x)
            return torch.cat([torch.zeros_like(z), z], 1)

    y = (x @ w[0] > 0).long()
    task = Task("neuron", TwoClasses(), F.cross_entropy, (x, y), (x, y), batch_size=20)
    spread = 0.4 * float(w.abs().max()) * math.sqrt(sum(4.0**-i for i in range(1, 9)))
    right = [NormalDist().cdf(abs(float(row @ w[0])) / (spread * float(row.norm()))) for row in x]
    found = mean_over_chips(task, program(task, Device(sigma=0.4)), passes=40)
    assert abs(found.mean - sum(right) / 400) < 4 * found.stderr


def test_common_chips_compare_better_than_independent_ones(trained):
    good = torch.zeros(trained.layout.size, dtype=torch.bool)
    good[:60] = True
    laws = {"none": program(trained, NOISY), "some": program(trained, NOISY, good)}
    found = compare(trained, laws, passes=6, seed=1)
    assert found.difference["none"].mean == 0
    alone = math.hypot(found.accuracy["none"].stderr, found.accuracy["some"].stderr)
    assert found.difference["some"].stderr < 0.9 * alone
    gap = found.accuracy["some"].mean - found.accuracy["none"].mean
    assert found.difference["some"].mean == pytest.approx(gap, abs=1e-12)


def test_early_stop_at_a_standard_error(trained):
    chip = program(trained, NOISY)
    found = mean_over_chips(trained, chip, passes=200, stderr=0.01)
    assert found.stderr < 0.01
    assert found.n < 200 * 12
    before = mean_over_chips(trained, chip, passes=found.n // 12 - 1)
    assert before.stderr >= 0.01
    whole = each_chip(trained, chip, 500, stderr=0.05)
    assert 5 <= whole.n < 500
    stopped = compare(trained, {"a": chip, "b": program(trained, Device())}, passes=200, stderr=0.02)
    assert stopped.accuracy["a"].n < 200 * 12


def test_read_noise_is_new_for_every_batch(trained):
    quiet = Device(sigma=0.0, verified_sigma=0.0)
    noisy = Device(sigma=0.0, verified_sigma=0.0, read_noise=2.0)
    assert each_chip(trained, program(trained, quiet), 3).min == one_by_one(trained, trained.theta())
    whole = each_chip(trained, program(trained, noisy), 20)
    fresh = mean_over_chips(trained, program(trained, noisy), passes=20)
    # Twelve readings per pass: no more spread between whole chips than between passes of fresh ones.
    assert whole.stderr < 2 * fresh.stderr
    assert abs(whole.mean - fresh.mean) < 4 * math.hypot(whole.stderr, fresh.stderr)


def test_a_point_and_a_law_without_streams_are_laws_too(trained):
    point = mean_over_chips(trained, Point(trained.theta(), trained.layout))
    assert (point.mean, point.stderr) == (pytest.approx(one_by_one(trained, trained.theta())), 0.0)

    class Sampled:
        layout = trained.layout

        def mean(self):
            return trained.theta()

        def variance(self):
            return torch.ones(trained.layout.size)

        def sample(self, count, *, generator=None):
            return trained.theta() + torch.randn(count, trained.layout.size, generator=generator)

    assert mean_over_chips(trained, Sampled()).stderr > 0


def test_regression_scores_are_minus_the_loss():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 2)
    task = Task("line", model, F.mse_loss, (x, x[:, :2]), (x, x[:, :2]), batch_size=8)
    found = mean_over_chips(task, program(task, Device(sigma=0.0, verified_sigma=0.0)))
    assert found.mean == pytest.approx(-float(F.mse_loss(model(x), x[:, :2]).detach()), rel=1e-5)


def test_ignored_positions_do_not_count():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(40, dtype=torch.long)
    y[::2] = -100
    model = nn.Linear(3, 2)
    model.weight.data.zero_()
    model.bias.data = torch.tensor([1.0, 0.0])
    task = Task("half", model, F.cross_entropy, (x, y), (x, y), batch_size=7)
    scorer = Scorer(task)
    assert (scorer.run(task.theta) == 1).all()
    assert float(scorer.counts.sum()) == 20


def test_shuffled_data_and_foreign_laws_are_refused(trained):
    x, y = torch.randn(50, 6), torch.arange(50) % 4

    class Restless:
        turn = 0

        def __iter__(self):
            self.turn += 1
            yield from TensorBatches(x, y.roll(self.turn), 10)

    task = Task("restless", trained.model, F.cross_entropy, (x, y), Restless())
    with pytest.raises(DataError, match="shuffle=False"):
        mean_over_chips(task, program(task, NOISY))
    other = Task("other", nn.Linear(6, 4), F.cross_entropy, (x, y), (x, y))
    with pytest.raises(LayoutError, match="28 weights"):
        mean_over_chips(trained, program(other, NOISY))
    with pytest.raises(DataError, match="at least 2 passes"):
        mean_over_chips(trained, program(trained, NOISY), passes=1)
    with pytest.raises(DataError, match="no laws"):
        compare(trained, {})


def test_a_shuffling_loader_is_read_in_one_order_and_left_alone(trained):
    x, y = next(iter(trained.batches("test")))
    loader = TensorBatches(x, y, 10, shuffle=True, generator=torch.Generator().manual_seed(5))
    task = Task("shuffled", trained.model, F.cross_entropy, (x, y), loader)
    before = loader.generator.get_state()
    passes = Passes(Scorer(task), Chip(program(task, NOISY).cells), None)
    passes.add()
    passes.add()
    assert torch.equal(loader.generator.get_state(), before)


@pytest.mark.parametrize("freedom", [4.0, 7.5, 11.0, 30.0, 1e9, math.inf])
@pytest.mark.parametrize("p", [0.95, 0.9875, 0.999])
def test_student_quantiles_are_those_of_scipy(freedom, p):
    # A series in 1 / freedom: within 1 % from 11 degrees on, 5 % at 4.
    assert student(p, freedom) == pytest.approx(
        float(stats.t.ppf(p, min(freedom, 1e9))), rel=0.06 if freedom < 8 else 0.01
    )


def test_chips_are_laws_for_evaluate(trained):
    from weightbank.evaluation import evaluate

    chip = program(trained, NOISY)
    found = evaluate(trained, chip, samples=4, generator=torch.Generator().manual_seed(3))
    each = each_chip(trained, chip, 4, generator=torch.Generator().manual_seed(3))
    assert found.draws["accuracy"].values == pytest.approx(each.values)

"""Statistics collected for each draw, and nothing of the user's touched."""

import copy

import pytest
import torch
from evaluation_laws import Diagonal, gaussian_blobs
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from weightbank.distributions.point import Point
from weightbank.errors import DataError
from weightbank.evaluation import evaluate
from weightbank.task import Task, evaluating


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(6, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(self.body(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([left, right], -1))


@pytest.fixture
def task() -> Task:
    torch.manual_seed(0)
    return Task("normed", Net(), F.cross_entropy, gaussian_blobs(64, 1), gaussian_blobs(50, 2), batch_size=16)


def by_hand(task: Task, draws: torch.Tensor, batches) -> torch.Tensor:
    """Probabilities of each draw after a manual update_bn, dropout masks off as only BatchNorm sits before it."""
    found = []
    for theta in draws:
        model = copy.deepcopy(task.model)
        task.layout.assign(model, theta)
        update_bn(batches, model)
        with torch.no_grad(), evaluating(model):
            found.append(torch.cat([model(x) for x, _ in task.batches("test")]).double().softmax(-1))
    return torch.stack(found)


def test_every_draw_has_the_statistics_of_a_manual_update(task):
    law = Diagonal(task.theta(), 0.2, task.layout)
    draws = law.sample(4, generator=torch.Generator().manual_seed(0))
    wanted = by_hand(task, draws, list(task.batches("train"))).mean(0)
    # Statistics over another order of the batches differ by rounding in single precision.
    torch.testing.assert_close(evaluate(task, law, 4).probabilities, wanted, rtol=0, atol=2e-6)
    kept = evaluate(task, law, 4, batch_norm="keep").probabilities
    assert (kept - wanted).abs().max() > 0.01


def test_a_subset_of_batches_is_the_first_ones(task):
    x, y = gaussian_blobs(64, 1)
    batches = list(zip(x.split(16), y.split(16), strict=True))
    ordered = Task("normed", task.model, F.cross_entropy, batches, task.test)
    law = Diagonal(task.theta(), 0.2, task.layout)
    draws = law.sample(2, generator=torch.Generator().manual_seed(0))
    found = evaluate(ordered, law, 2, batch_norm_batches=2).probabilities
    torch.testing.assert_close(found, by_hand(ordered, draws, batches[:2]).mean(0), rtol=0, atol=1e-12)


def test_the_model_the_loaders_and_the_global_random_state_are_untouched(task):
    x, y = gaussian_blobs(64, 1)
    held = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=held)
    task = Task("normed", task.model, F.cross_entropy, loader, task.test)
    task.model.train()
    task.model.head.eval()
    state = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    flags = [module.training for module in task.model.modules()]
    held_state, global_state = held.get_state(), torch.get_rng_state()
    evaluate(task, Diagonal(task.theta(), 0.2, task.layout), 2, batch_norm_batches=1)
    assert all(torch.equal(state[name], tensor) for name, tensor in task.model.state_dict().items())
    assert [module.training for module in task.model.modules()] == flags
    assert all(parameter.grad is None and parameter.requires_grad for parameter in task.model.parameters())
    assert torch.equal(held.get_state(), held_state)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_a_shuffled_subset_and_dropout_repeat_in_a_second_call(task):
    deep = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3))
    task = Task("noisy", deep, F.cross_entropy, task.train, task.test)
    law = Diagonal(task.theta(), 0.2, task.layout)
    first = evaluate(task, law, 3, batch_norm_batches=2).probabilities
    list(task.batches("train"))
    torch.rand(5)
    assert torch.equal(evaluate(task, law, 3, batch_norm_batches=2).probabilities, first)


def test_a_later_draw_does_not_depend_on_earlier_ones(task):
    law = Diagonal(task.theta(), 0.2, task.layout)
    draws = law.sample(3, generator=torch.Generator().manual_seed(0))
    alone = [evaluate(task, theta).probabilities for theta in draws]
    together = evaluate(task, law, 3).probabilities
    torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=0, atol=1e-14)


def test_buffers_that_drift_in_training_start_anew_for_every_draw(task):
    class Drifting(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.scale += 1
            return super().forward(x)

    task = Task("drifting", Drifting(), F.cross_entropy, task.train, task.test)
    theta = task.theta()
    twice = evaluate(task, Diagonal(theta, 0.0, task.layout), 2)
    assert float(twice.variance.max()) == 0
    assert torch.equal(task.model.scale, torch.tensor(2.0))


def test_the_models_own_weights_are_refreshed_too_unless_kept(task):
    kept = evaluate(task, Point(task.theta(), task.layout), batch_norm="keep").probabilities
    with torch.no_grad(), evaluating(task.model):
        plain = torch.cat([task.model(x) for x, _ in task.batches("test")]).double().softmax(-1)
    torch.testing.assert_close(kept, plain, rtol=0, atol=1e-15)
    refreshed = evaluate(task, task.theta()).probabilities
    wanted = by_hand(task, task.theta()[None], list(task.batches("train")))[0]
    torch.testing.assert_close(refreshed, wanted, rtol=0, atol=2e-6)
    assert (refreshed - kept).abs().max() > 0.01


@pytest.mark.parametrize("pack", [lambda a, b: (a, b), lambda a, b: {"left": a, "right": b}])
def test_tuples_and_dicts_of_inputs_are_refreshed_like_one_tensor(task, pack):
    joint = Task("normed", task.model, F.cross_entropy, list(task.batches("train")), task.test)
    split = TwoInputs()
    split.net = task.model
    train = [(pack(x[:, :1], x[:, 1:]), y) for x, y in joint.train]
    test = [(pack(x[:, :1], x[:, 1:]), y) for x, y in joint.test]
    found = evaluate(Task("split", split, F.cross_entropy, train, test), task.theta()).probabilities
    torch.testing.assert_close(found, evaluate(joint, task.theta()).probabilities, rtol=0, atol=1e-12)


def test_tied_weights_are_loaded_once(task):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.norm(self.a(x)))

    tied = Task("tied", Tied(), F.cross_entropy, list(task.batches("train")), task.test)
    theta = tied.theta() + 0.5
    found = evaluate(tied, theta).probabilities
    wanted = by_hand(tied, theta[None], list(tied.batches("train")))[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_no_training_data_is_said_and_not_served_with_empty_statistics(task):
    empty = Task("normed", task.model, F.cross_entropy, [], task.test)
    with pytest.raises(DataError, match="train data"):
        evaluate(empty, task.theta())


def test_many_draws_at_once_need_kept_statistics(task):
    law = Diagonal(task.theta(), 0.2, task.layout)
    with pytest.raises(DataError, match='batch_norm="keep"'):
        evaluate(task, law, 4, vectorize=2)
    together = evaluate(task, law, 4, vectorize=2, batch_norm="keep").probabilities
    alone = evaluate(task, law, 4, batch_norm="keep").probabilities
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from weightbank.errors import DataError
from weightbank.layout import within
from weightbank.task import Task, TensorBatches

x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
y = torch.arange(10) % 2


def task_of(model: nn.Module, **more: object) -> Task:
    return Task("toy", model, F.cross_entropy, (x, y), (x, y), **more)  # type: ignore[arg-type]


def test_predict_equals_the_model_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    task = task_of(model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predicted = task.predict(task.theta(), x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(predicted, model.eval()(x))


def test_predict_uses_the_given_weights_and_leaves_the_models_own() -> None:
    model = nn.Linear(3, 2)
    task = task_of(model)
    own = task.theta()
    assert torch.equal(task.predict(torch.zeros(8), x), torch.zeros(10, 2))
    assert torch.equal(task.theta(), own)


def test_predict_takes_other_buffers() -> None:
    model = nn.BatchNorm1d(3)
    task = task_of(model)
    shifted = task.predict(task.theta(), x, buffers={"running_mean": torch.ones(3)})
    assert torch.allclose(shifted, task.predict(task.theta(), x - 1))


def test_gradient_flows_through_theta() -> None:
    task = task_of(nn.Linear(3, 2))
    theta = task.theta().requires_grad_()
    F.cross_entropy(task.predict(theta, x), y).backward()  # type: ignore[no-untyped-call]
    reference = nn.Linear(3, 2)
    task.layout.assign(reference, theta.detach())
    F.cross_entropy(reference(x), y).backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    expected = task.layout.ravel({name: p.grad for name, p in reference.named_parameters() if p.grad is not None})
    assert torch.allclose(theta.grad, expected)


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, features: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(features) * factor
        return out


def test_inputs_may_be_dicts_or_tuples() -> None:
    model = Keyword()
    batches = [({"features": x, "factor": torch.tensor(2.0)}, y)]
    task = Task("keywords", model, F.cross_entropy, batches, [((x, torch.tensor(2.0)), y)])
    (by_name, _), (by_place, _) = next(task.batches("train")), next(task.batches("test"))
    expected = model(x, torch.tensor(2.0))
    assert torch.equal(task.predict(task.theta(), by_name), expected)
    assert torch.equal(task.predict(task.theta(), by_place), expected)


def test_where_restricts_theta_to_a_part() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    task = task_of(model, where=within("1"))
    assert task.layout.size == 10
    assert torch.equal(task.predict(task.theta(), x), model(x))


def test_shuffled_passes_cover_everything_and_repeat_with_the_seed() -> None:
    def passes() -> list[list[int]]:
        batches = TensorBatches(torch.arange(10), torch.arange(10), 4, shuffle=True)
        return [[int(i) for part, _ in batches for i in part] for _ in range(2)]

    first, second = passes()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert passes() == [first, second]


def test_loaders_datasets_and_tensors_give_the_same_test_batches() -> None:
    dataset = TensorDataset(x, y)
    sources = [(x, y), dataset, DataLoader(dataset, 4)]
    tasks = [Task("t", nn.Linear(3, 2), F.cross_entropy, s, s, batch_size=4) for s in sources]  # type: ignore[arg-type]
    seen = [torch.cat([part for part, _ in task.batches("test")]) for task in tasks]  # type: ignore[misc]
    assert all(torch.equal(part, x) for part in seen)


def test_unusable_data_get_clear_errors() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(DataError, match="no batch came"):
        list(Task("t", model, F.cross_entropy, [], (x, y)).batches())
    with pytest.raises(DataError, match="read only once"):
        Task("t", model, F.cross_entropy, iter([(x, y)]), (x, y))
    with pytest.raises(DataError, match="10 inputs and 9 targets"):
        Task("t", model, F.cross_entropy, (x, y[:9]), (x, y))
    with pytest.raises(DataError, match=r"a pair \(x, y\)"):
        list(Task("t", model, F.cross_entropy, DataLoader(TensorDataset(x)), (x, y)).batches())


@pytest.mark.usefixtures("unchecked_types")
def test_a_name_instead_of_a_model_is_said_to_be_one() -> None:
    data = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(DataError, match="a str came for the model and a function for the loss"):
        Task("toy", "resnet18", F.cross_entropy, data, data)
    with pytest.raises(DataError, match="a str for the loss"):
        Task("toy", nn.Linear(2, 2), "cross_entropy", data, data)

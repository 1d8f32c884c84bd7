import math

import pytest
import torch
from evaluation_laws import Diagonal, gaussian_blobs
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from weightbank.errors import DataError
from weightbank.evaluation import evaluate
from weightbank.task import Task


def test_dense_targets_with_ignored_positions_count_the_others():
    torch.manual_seed(0)
    model = nn.Conv1d(2, 3, 1)
    x = torch.randn(9, 2, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 3, (9, 5), generator=torch.Generator().manual_seed(1))
    y[:, 2] = -100
    task = Task("dense", model, F.cross_entropy, (x, y), (x, y), batch_size=4)
    report = evaluate(task, task.theta())
    with torch.no_grad():
        wanted = float(F.cross_entropy(model(x), y))
    assert report.nll.n == 36
    assert report.nll.mean == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(DataError, match="label to ignore"):
        evaluate(task, task.theta(), data=(x, torch.full_like(y, -100)))


def test_labels_of_foreign_data_are_not_looked_at(task, law):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(8))
    y = torch.full((40,), 77)
    plain = evaluate(task, law, 3, ood=x)["auroc"].mean
    for same in ((x, y), list(x.split(7)), [(x, y)], DataLoader(TensorDataset(x), batch_size=9), TensorDataset(x, y)):
        assert evaluate(task, law, 3, ood=same)["auroc"].mean == pytest.approx(plain, abs=1e-3)


def test_foreign_data_needs_classes():
    x = torch.ones(5, 3)
    task = Task("linear", nn.Linear(3, 1), F.mse_loss, (x, x[:, :1]), (x, x[:, :1]))
    with pytest.raises(DataError, match="targets are floating"):
        evaluate(task, task.theta(), ood=x)


def test_a_shuffling_loader_is_told_to_stop(task, law):
    x, y = gaussian_blobs(101, 2)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
    with pytest.raises(DataError, match="blobs: given data.*shuffle=False"):
        evaluate(task, law, 3, data=loader)
    with pytest.raises(DataError, match="foreign data: batch 0 has other inputs.*shuffle=False"):
        evaluate(task, law, 3, ood=DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True))


class Shrinking:
    """A data source that brings fewer or more batches on each pass."""

    def __init__(self, batches, step: int) -> None:
        self.batches, self.count, self.step = batches, 2, step

    def __iter__(self):
        yield from self.batches[: self.count]
        self.count += self.step


@pytest.mark.parametrize(("step", "words"), [(-1, "32 examples came after 64"), (1, "more than the 64|other targets")])
def test_a_source_that_changes_its_length_is_refused(task, law, step, words):
    source = Shrinking(list(task.batches("test")), step)
    with pytest.raises(DataError, match=words):
        evaluate(task, law, 3, data=source)
    foreign = Shrinking([x for x, _ in task.batches("test")], step)
    with pytest.raises(DataError, match="foreign data"):
        evaluate(task, law, 3, ood=foreign)


def test_data_that_can_be_read_only_once_or_not_at_all_is_refused(task, law):
    with pytest.raises(DataError, match="only once"):
        evaluate(task, law, 3, data=iter(task.batches("test")))
    with pytest.raises(DataError, match="no batch came"):
        evaluate(task, law, 3, data=[])
    with pytest.raises(DataError, match="no batch came"):
        evaluate(task, law, 3, ood=[])


def test_nan_names_the_draw_and_the_count(task):
    class Bad(Diagonal):
        def sample(self, count, *, generator=None):
            draws = super().sample(count, generator=generator)
            draws[2] = torch.nan
            return draws

    for together in (None, 2, 5):
        with pytest.raises(DataError, match=r"test data: draw 2 gave NaN or infinite outputs for 101 of 101 examples"):
            evaluate(task, Bad(task.theta(), 0.1, task.layout), 5, vectorize=together)


def test_infinite_numbers_are_refused_in_a_regression():
    x = torch.tensor([[0.5], [2.0], [4.0]])
    task = Task("inverse", nn.Linear(1, 1, bias=False), F.mse_loss, (x, x), (x, x))
    with pytest.raises(DataError, match="draw 0 gave NaN or infinite outputs for 2 of 3"):
        evaluate(task, torch.tensor([3e38]))
    with pytest.raises(DataError, match="1 targets are NaN"):
        evaluate(task, task.theta(), data=(x, torch.tensor([[1.0], [torch.nan], [2.0]])))


def test_forbidden_classes_are_no_nan(task, law):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).index_fill(1, torch.tensor([2]), -math.inf)

    x, y = gaussian_blobs(30, 2)
    masked = Task("masked", Masked(), F.cross_entropy, (x, y), (x, y))
    report = evaluate(masked, masked.theta())
    assert not report.probabilities[:, 2].any()
    assert math.isfinite(report.nll.mean)
    assert bool(report.entropy.isfinite().all())

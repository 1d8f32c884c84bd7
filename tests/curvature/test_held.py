"""A task comes out of a curvature as it went in, and one that is no fixed function of its weights is refused."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import classes, conv_task, mlp, mlp_task, numbers, randomized, task_of
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from weightbank import curvature
from weightbank.curvature import CurvatureError
from weightbank.errors import DataError, NonFiniteError
from weightbank.layout import within
from weightbank.task import Task

NAMES = ["backprop", "fisher", "fisher_empirical", "ggn", "ggn_sampled", "hutchinson", "magnitude", "random"]
FUNCTIONS = [getattr(curvature, name) for name in NAMES]
READING = FUNCTIONS[:6]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_all_have_one_signature_and_one_kind_of_result(function):
    shared = ["task", "images", "batch_size", "generator"]
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:4] == shared
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "task")
    task = conv_task()
    scores = function(task, images=6)
    assert scores.shape == (task.layout.size,)
    assert scores.dtype == torch.float64
    assert not scores.requires_grad
    assert torch.equal(scores, function(task, images=6))


class Counting(nn.Module):
    """Writes into a buffer at every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x):
        self.passes.add_(1)
        return self.linear(x)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_task_is_left_as_it_was(function):
    model = randomized(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))
    model.append(nn.Linear(4, 3).double().eval()).append(nn.Identity())
    loader = DataLoader(TensorDataset(numbers(10, 4), classes(10)), 4, shuffle=True, generator=torch.Generator())
    task = Task("t", model, F.cross_entropy, loader, loader)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    random_state, loader_state = torch.get_rng_state(), loader.generator.get_state()
    function(task, images=20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == [module.training for module in model.modules()]
    assert all(bool((parameter.grad == 7).all()) for parameter in model.parameters())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(loader.generator.get_state(), loader_state)


@pytest.mark.parametrize("function", READING[1:])
def test_buffers_written_by_a_forward_pass_stay(function):
    model = Counting()
    function(task_of(model, numbers(4, 4).float(), classes(4)))
    assert float(model.passes) == 0


@pytest.mark.parametrize("function", READING)
def test_where_restricts_scores_to_a_part(function):
    model = mlp()
    x, y = numbers(8, 4), classes(8)
    part, whole = task_of(model, x, y, where=within("4")), task_of(model, x, y)
    scores = function(part)
    assert scores.shape == (15,)
    if function not in (curvature.ggn_sampled, curvature.hutchinson):
        torch.testing.assert_close(scores, function(whole)[-15:], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("function", READING[:5])
def test_weights_without_influence_score_zero(function):
    model = mlp()
    model.register_parameter("unused", nn.Parameter(torch.ones(3).double()))
    task = task_of(model, numbers(8, 4), classes(8))
    assert torch.equal(function(task)[task.layout.slice("unused")], torch.zeros(3).double())
    assert float(function(task).max()) > 0


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.01 * torch.randn_like(x)


@pytest.mark.parametrize("function", READING)
def test_random_layers_are_refused(function):
    task = task_of(randomized(nn.Sequential(nn.Linear(4, 3), Noisy())), numbers(8, 4), classes(8))
    with pytest.raises(CurvatureError, match="two outputs for the same [14] inputs"):
        function(task)


@pytest.mark.parametrize("function", READING)
def test_batch_norm_without_statistics_is_refused(function):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    with pytest.raises(CurvatureError, match="'1' normalizes by each batch's own statistics"):
        function(task_of(model, numbers(8, 4), classes(8)))


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize("function", [curvature.ggn, curvature.fisher, curvature.fisher_empirical])
def test_examples_that_depend_on_each_other_are_refused_where_single_ones_are_needed(function):
    task = task_of(randomized(nn.Sequential(nn.Linear(4, 3), Centred())), numbers(8, 4), classes(8))
    with pytest.raises(CurvatureError, match="other outputs together than alone"):
        function(task)


def test_a_sum_instead_of_a_mean_is_refused():
    task = mlp_task(loss=lambda z, y: F.multi_margin_loss(z, y, reduction="sum"))
    with pytest.raises(CurvatureError, match="a loss that is a mean"):
        curvature.fisher_empirical(task)


def test_inputs_without_a_row_per_example_are_refused_where_single_ones_are_needed():
    x, y = numbers(8, 4), classes(8)
    packed = [((x.T,), y)]

    class Turned(nn.Linear):
        def forward(self, x):
            return super().forward(x.T)

    task = Task("packed", Turned(4, 3).double(), F.cross_entropy, packed, packed)
    with pytest.raises(CurvatureError, match="none of the inputs has a first dimension of 8.*take ggn_sampled"):
        curvature.ggn(task)
    assert float(curvature.ggn_sampled(task, images=8).min()) > 0


@pytest.mark.parametrize("function", READING)
def test_nan_and_infinite_outputs_are_refused(function):
    for value in (torch.nan, torch.inf):
        task = mlp_task()
        with torch.no_grad():
            task.model[-1].bias[0] = value
        with pytest.raises(NonFiniteError, match="(1 of the 3|4 of the 12) outputs"):
            function(task)


@pytest.mark.parametrize("function", READING)
def test_a_bad_input_in_a_later_batch_is_refused(function):
    x = numbers(11, 4)
    x[9, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        function(task_of(mlp(), x, classes(11)), images=11)


@pytest.mark.parametrize("function", READING)
def test_empty_data_and_bad_counts_are_refused(function):
    with pytest.raises(DataError, match="no batch came"):
        function(Task("t", mlp(), F.cross_entropy, [], []))
    with pytest.raises(DataError, match="images=0"):
        function(mlp_task(), images=0)
    with pytest.raises(DataError, match="batch_size=-1"):
        function(mlp_task(), batch_size=-1)
    with pytest.raises(DataError, match=r"targets of shape \(\)"):
        function(Task("t", mlp(), F.cross_entropy, [(numbers(4), torch.tensor(1))], []))


@pytest.mark.parametrize("function", READING)
def test_data_without_labels_are_refused(function):
    task = task_of(mlp(), numbers(8, 4), torch.full((8,), -100))
    with pytest.raises(DataError, match="add up to 0"):
        function(task, images=8)


class Flipping(Dataset):
    """Random flips, as in training."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x = numbers(4, seed=index)
        return (x.flip(0) if float(torch.rand(())) < 0.5 else x), index % 3


class Plain(Flipping):
    def __getitem__(self, index):
        return numbers(4, seed=index), index % 3


def noisy_collate(items):
    x, y = torch.utils.data.default_collate(items)
    return x + torch.randn_like(x), y


@pytest.mark.parametrize("function", READING)
def test_augmented_training_data_are_refused(function):
    for loader in (
        DataLoader(Flipping(), 4),
        DataLoader(Flipping(), 4, shuffle=True),
        DataLoader(Plain(), 4, collate_fn=noisy_collate),
    ):
        with pytest.raises(CurvatureError, match="two versions of the same examples"):
            function(Task("t", mlp(), F.cross_entropy, loader, loader))


@pytest.mark.parametrize("function", [curvature.ggn, curvature.backprop, curvature.fisher_empirical])
def test_shuffling_changes_nothing(function):
    ordered, shuffled = (DataLoader(Plain(), 4, shuffle=shuffle) for shuffle in (False, True))
    one, other = (function(Task("t", mlp(), F.cross_entropy, loader, loader)) for loader in (ordered, shuffled))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("function", READING)
def test_a_shuffling_loader_hands_out_the_same_examples_whatever_was_drawn_before(function):
    loader = DataLoader(Plain(), 4, shuffle=True)
    task = Task("t", mlp(), F.cross_entropy, loader, loader)
    first = function(task, images=6)
    torch.rand(3)
    assert torch.equal(function(task, images=6), first)
    assert not torch.equal(function(task, images=6, generator=torch.Generator().manual_seed(9)), first)


def test_half_precision_models_get_float32_scores():
    x, y = numbers(8, 4), classes(8)
    exact = curvature.ggn(task_of(mlp(), x, y))
    for function in (curvature.ggn, curvature.backprop):
        scores = function(task_of(mlp().bfloat16(), x.bfloat16(), y))
        assert scores.dtype == torch.float32
        expected = exact if function is curvature.ggn else curvature.backprop(task_of(mlp(), x, y))
        assert float((scores - expected).abs().max()) < 0.1 * float(expected.max())  # 8 bits, a few roundings of 1/256

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from weightbank.errors import ResumeError
from weightbank.integrations import AveragedModel
from weightbank.store import RowLog


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[3].bias.requires_grad_(False)
    return model


def trained(model: nn.Module, *averages: nn.Module, steps: int = 7) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 4, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for average in averages:
            average.update_parameters(model)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_it_averages_like_torch(use_buffers: bool) -> None:
    model = network()
    theirs = swa_utils.AveragedModel(model, use_buffers=use_buffers)
    ours = AveragedModel(model, use_buffers=use_buffers)
    trained(model, theirs, ours)
    assert isinstance(ours, swa_utils.AveragedModel)
    assert int(ours.n_averaged) == int(theirs.n_averaged) == 7
    for (name, mine), (other, their) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-7)
    for mine, their in zip(ours.buffers(), theirs.buffers(), strict=True):
        if mine.is_floating_point():  # torch averages whole numbers, too, and cuts them off
            torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)
    x = torch.randn(5, 4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-6)


def test_update_bn_refreshes_its_statistics() -> None:
    model = network()
    ours = AveragedModel(model)
    trained(model, ours)
    data = [torch.randn(32, 4) + 5 for _ in range(3)]
    swa_utils.update_bn(data, ours)
    expected = torch.cat([ours.module[0](x) for x in data]).mean(0)
    torch.testing.assert_close(ours.module[1].running_mean, expected, rtol=1e-4, atol=1e-4)


def test_the_law_is_that_of_the_iterates() -> None:
    model = network()
    ours = AveragedModel(model, rows=RowLog(":memory:"))
    seen = []
    for seed in range(5):
        torch.manual_seed(seed)
        nn.init.normal_(model[0].weight)
        seen.append(nn.utils.parameters_to_vector(model.parameters()).detach().double())
        ours.update_parameters(model)
    stacked = torch.stack(seen)
    torch.testing.assert_close(ours.moments.mean().double(), stacked.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.moments.variance().double(), stacked.var(0, correction=0), rtol=1e-4, atol=1e-6)
    assert ours.gaussian().sample(2).shape == (2, stacked.shape[1])


def test_its_state_dict_goes_on_where_it_was() -> None:
    model = network()
    whole = AveragedModel(model)
    trained(model, whole, steps=6)
    model = network()
    first = AveragedModel(model)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(6):
        if step == 3:
            state = first.state_dict()
            first = AveragedModel(network())
            first.load_state_dict(state)
        x = torch.randn(16, 4, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        first.update_parameters(model)
    for mine, their in zip(first.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, their)
    assert torch.equal(first.moments.variance(), whole.moments.variance())


def test_a_state_without_moments_is_refused_at_the_next_update() -> None:
    model = network()
    theirs = swa_utils.AveragedModel(model)
    trained(model, theirs, steps=2)
    ours = AveragedModel(model)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    with pytest.raises(ResumeError, match="2 models were averaged"):
        ours.update_parameters(model)

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from weightbank.task import TensorBatches
from weightbank.undisturbed import undisturbed

CPU = torch.device("cpu")


def loaders():
    x = torch.arange(20.0)
    held = torch.Generator().manual_seed(4)
    yield DataLoader(TensorDataset(x, x), batch_size=3, shuffle=True, generator=held)
    yield DataLoader(TensorDataset(x, x), batch_size=3, shuffle=True)
    yield TensorBatches(x, x, 3, shuffle=True)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_pass_inside_leaves_the_next_pass_as_it_was(which):
    loader, twin = list(loaders())[which], list(loaders())[which]
    torch.manual_seed(7)
    with undisturbed(loader, device=CPU):
        list(loader)
        torch.rand(3)
    after = [x.tolist() for x, _ in loader], torch.rand(3).tolist()
    torch.manual_seed(7)
    assert after == ([x.tolist() for x, _ in twin], torch.rand(3).tolist())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_seed_makes_every_pass_inside_the_same(which):
    loader = list(loaders())[which]
    passes = []
    for _ in range(2):
        with undisturbed(loader, device=CPU, seed=11):
            passes.append([x.tolist() for x, _ in loader])
        list(loader)
    assert passes[0] == passes[1]


def interrupted_pass(loader):
    with undisturbed(loader, device=CPU):
        next(iter(loader))
        raise KeyboardInterrupt


def test_states_come_back_after_an_interrupt():
    loader = next(loaders())
    before = loader.generator.get_state(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        interrupted_pass(loader)
    assert torch.equal(loader.generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])

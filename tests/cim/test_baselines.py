import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from weightbank.cim import Device, first_derivative, mean_over_chips, noise_injection, program
from weightbank.task import Task
from weightbank.training import epochs


def line() -> Task:
    torch.manual_seed(0)
    x = torch.randn(23, 3)
    return Task("line", nn.Linear(3, 2), F.mse_loss, (x, x[:, :2]), (x, x[:, :2]), batch_size=5)


def test_first_derivative_is_the_gradient_of_the_mean_loss():
    task = line()
    x, y = task.train.x, task.train.y
    theta = task.theta().requires_grad_()
    (gradient,) = torch.autograd.grad(F.mse_loss(task.predict(theta, x), y), theta)
    torch.testing.assert_close(first_derivative(task), gradient.abs(), rtol=1e-5, atol=1e-7)


def test_injected_noise_moves_the_gradient_but_not_the_weights():
    """By hand: the gradient at the noisy weights, the step from the exact ones."""
    task, device = line(), Device(sigma=0.5)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    before, seen = task.theta(), []
    hook = task.model.register_forward_hook(lambda *_: seen.append(task.theta()))
    steps = []
    with noise_injection(task, optimizer, device, generator=torch.Generator().manual_seed(3)):
        for _ in epochs(task, optimizer, count=1, each_step=lambda theta, step: steps.append(theta.clone())):
            pass
    hook.remove()
    assert len(steps) == len(seen) == 5
    exact = [before, *steps]
    task.train.generator.manual_seed(0)
    for (x, y), start, noisy, after in zip(task.batches("train"), exact, seen, steps, strict=False):
        assert torch.equal(noisy[6:], start[6:])  # biases are digital
        error = (noisy - start)[:6] / program(task.layout, device, theta=start).variance()[:6].sqrt()
        assert 0 < float(error.abs().max()) < 5
        free = noisy.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.mse_loss(task.predict(free, x), y), free)
        torch.testing.assert_close(after, start - 0.1 * gradient)
    assert torch.equal(task.theta(), steps[-1])


def test_injection_leaves_exact_weights_behind_after_an_error():
    task = line()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    before = task.theta()

    def fail() -> None:
        task.model.train()
        task.model(task.train.x)
        assert not torch.equal(task.theta(), before)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError), noise_injection(task, optimizer, Device(sigma=0.5)):
        fail()
    assert torch.equal(task.theta(), before)
    task.model(task.train.x)
    assert torch.equal(task.theta(), before)


def test_evaluation_within_the_block_sees_exact_weights():
    task = line()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    expected = task.predict(task.theta(), task.train.x)
    with noise_injection(task, optimizer, Device(sigma=0.5)), torch.no_grad():
        assert torch.equal(task.model.eval()(task.train.x), expected)
        assert torch.equal(task.model.train()(task.train.x), expected)


def test_training_with_noise_makes_it_less_harmful(trained):
    """The same network, data and steps, with and without the device's errors in training."""
    device, found = Device(4, 1, sigma=0.5), []
    for sigma in (0.0, 0.5):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
        task = Task("blobs", model, F.cross_entropy, (trained.train.x, trained.train.y), trained.test, batch_size=50)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        with noise_injection(task, optimizer, Device(4, 1, sigma=sigma, verified_sigma=0.0)):
            for _ in epochs(task, optimizer, count=15):
                pass
        found.append(mean_over_chips(task, program(task, device), passes=10))
    assert found[1].mean - found[0].mean > 4 * math.hypot(found[0].stderr, found[1].stderr)

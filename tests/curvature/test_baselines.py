"""The two orders of weights that are no curvature."""

import torch
from curvature_oracles import mlp_task, seeded

from weightbank.curvature import magnitude, random


def test_magnitude_is_the_absolute_weight_and_leaves_the_model_alone():
    task = mlp_task()
    before = task.theta()
    assert torch.equal(magnitude(task), before.abs())
    assert torch.equal(task.theta(), before)


def test_relative_magnitude_ends_at_one_in_every_tensor():
    task = mlp_task()
    with torch.no_grad():
        task.model[0].bias.zero_()
    scores = task.layout.unravel(magnitude(task, relative=True))
    assert torch.equal(scores["0.bias"], torch.zeros(5, dtype=torch.float64))
    for name, score in scores.items():
        if name != "0.bias":
            own = task.model.get_parameter(name).detach().abs()
            torch.testing.assert_close(score, own / own.max(), rtol=1e-15, atol=0)
            assert float(score.max()) == 1.0


def test_random_scores_repeat_with_the_seed_and_are_uniform():
    task = mlp_task()
    assert torch.equal(random(task), random(task))
    assert torch.equal(random(task, generator=seeded(1)), random(task, generator=seeded(1)))
    assert not torch.equal(random(task), random(task, generator=seeded(1)))
    scores = random(task)
    assert scores.shape == (task.layout.size,)
    assert float(scores.unique().numel()) == task.layout.size
    assert abs(float(scores.mean()) - 0.5) < 5 * (1 / 12 / len(scores)) ** 0.5  # five standard errors

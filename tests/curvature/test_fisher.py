"""The Fisher information: exact below a number of outputs, sampled above, both the same matrix as Gauss-Newton."""

import torch
import torch.nn.functional as F
from curvature_oracles import mlp_task, transformer_task, whole

from weightbank.curvature import fisher, ggn, ggn_sampled


def test_few_outputs_are_exact_and_many_are_sampled():
    task = mlp_task()
    assert torch.equal(fisher(task), ggn(task))
    assert torch.equal(fisher(task, outputs=2, images=40), ggn_sampled(task, images=40))


def test_outputs_are_counted_over_the_positions_of_an_example():
    task = transformer_task()  # 3 positions of 4 classes
    assert torch.equal(fisher(task, outputs=12), ggn(task))
    assert torch.equal(fisher(task, outputs=11, images=40), ggn_sampled(task, images=40))


def test_fisher_is_the_expected_squared_score_over_all_labels():
    task = mlp_task()
    x, _ = whole(task)
    theta, expected = task.theta(), 0.0
    for row in x:
        p = task.predict(theta, row[None]).softmax(-1)[0]
        for label in range(3):
            score = torch.func.grad(
                lambda t, r=row, c=label: F.cross_entropy(task.predict(t, r[None]), torch.tensor([c]))
            )
            expected = expected + p[label] * score(theta).square() / len(x)
    torch.testing.assert_close(fisher(task), expected, rtol=1e-10, atol=1e-13)

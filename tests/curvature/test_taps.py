"""Which linear layers need no gradient per example."""

import pytest
import torch
import torch.nn.functional as F
from curvature_oracles import TASKS, SharedLinear, classes, numbers, randomized, task_of
from torch import nn

from weightbank.curvature.held import holding
from weightbank.curvature.reading import Examples
from weightbank.curvature.taps import Plan, Tapping


def plan_of(task):
    x, y = next(task.batches())
    with holding(task, None) as held:
        return Plan.of(held, *Examples.of(x, y).slice(0, 1))


def test_every_layer_of_an_mlp_is_tapped():
    plan = plan_of(TASKS["mlp"]())
    assert dict(plan.layers) == {"0.weight": "0.bias", "2.weight": "2.bias", "4.weight": "4.bias"}
    assert plan.size == TASKS["mlp"]().layout.size


@pytest.mark.parametrize(
    ("name", "tapped"),
    [("conv", {"9.weight": "9.bias"}), ("residual", {"head.weight": "head.bias"}), ("transformer", {})],
)
def test_only_layers_with_one_row_per_example_are_tapped(name, tapped):
    assert dict(plan_of(TASKS[name]()).layers) == tapped


class PartlyShared(SharedLinear):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.regularized = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        x = self.last(super().forward(x))
        return self.regularized(x) + 0 * self.regularized.weight.sum()


def test_weights_used_twice_or_otherwise_are_not_tapped():
    task = task_of(randomized(PartlyShared()), numbers(5, 4), classes(5))
    assert dict(plan_of(task).layers) == {"last.weight": None}


def test_another_use_than_planned_is_noticed():
    weight, bias, x = numbers(3, 4), numbers(3), numbers(1, 4)
    plan = Plan({"w": "b"}, 15)
    weights, taps = {"w": weight, "b": bias}, {"w": torch.zeros(3).double()}
    with Tapping(plan, weights, taps) as tapping, pytest.raises(RuntimeError, match="a linear layer was not used"):
        tapping.inputs()
    for use in (
        lambda: weight.sum(),
        lambda: F.linear(numbers(2, 4), weight, bias),
        lambda: torch.cat([weight, weight]),
    ):
        with pytest.raises(RuntimeError, match="were not used as in the first"), Tapping(plan, weights, taps):
            use()
    with Tapping(plan, weights, taps) as tapping:
        F.linear(x, weight, bias=bias)
    assert torch.equal(tapping.inputs()["w"], x[0])

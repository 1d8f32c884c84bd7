"""Training data in batches of a wanted size."""

import torch
import torch.nn.functional as F
from curvature_oracles import classes, mlp, numbers, task_of

from weightbank.curvature.reading import Examples, batches
from weightbank.task import Task

x, y = numbers(10, 4), classes(10)
task = task_of(mlp(), x, y, batch_size=4)


def sizes(*args, **more):
    return [len(target) for _, target in batches(task, *args, **more)]


def test_batches_are_cut_and_never_joined():
    assert sizes() == [4, 4, 2]
    assert sizes(batch_size=3) == [3, 1, 3, 1, 2]
    assert sizes(batch_size=100) == [4, 4, 2]


def test_images_end_within_a_batch_or_after_further_passes():
    assert sizes(5) == [4, 1]
    assert sizes(8) == [4, 4]
    assert sizes(15) == [4, 4, 2]
    assert sizes(15, again=True) == [4, 4, 2, 4, 1]
    assert sizes(7, 3) == [3, 1, 3]


def test_pieces_put_together_are_the_data():
    parts = list(batches(task, batch_size=3))
    assert torch.equal(torch.cat([part for part, _ in parts]), x)
    assert torch.equal(torch.cat([part for _, part in parts]), y)


def test_nested_inputs_are_cut_where_they_have_a_row_per_example():
    scale, mask = torch.ones(4), torch.ones(10, 2)
    examples = Examples.of({"a": (x, scale), "b": [mask, "mean"]}, y)
    (cut, target) = examples.slice(2, 5)
    assert torch.equal(cut["a"][0], x[2:5])
    assert cut["a"][1] is scale
    assert torch.equal(cut["b"][0], mask[2:5])
    assert cut["b"][1] == "mean"
    assert torch.equal(target, y[2:5])


def test_a_batch_without_rows_stays_whole():
    whole = Task("t", mlp(), F.cross_entropy, [(x.T, y)], [])
    assert [len(target) for _, target in batches(whole, 3, 2)] == [10]

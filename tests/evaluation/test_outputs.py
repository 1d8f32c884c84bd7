from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from weightbank.errors import DataError
from weightbank.evaluation.outputs import class_axis, labelled, log_probabilities, numbers, tensor_of


def test_sequences_with_classes_on_axis_one_have_cross_entropys_loss():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, 3, 7, 2, generator=generator)
    target = torch.randint(0, 3, (5, 7, 2), generator=generator)
    target[0, :3] = -100
    rows, labels = labelled(output, target, class_axis(output, target))
    assert len(labels) == 5 * 7 * 2 - 6
    ours = F.nll_loss(rows, labels)
    assert float(ours) == pytest.approx(float(F.cross_entropy(output.double(), target)), rel=1e-12)


def test_classes_last_and_classes_first_give_the_same_rows():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, 3, 7, generator=generator)
    target = torch.randint(0, 3, (5, 7), generator=generator)
    first = labelled(output, target, 1)
    assert class_axis(output.transpose(1, 2), target) == -1
    last = labelled(output.transpose(1, 2), target, -1)
    assert torch.equal(first[0], last[0])
    assert torch.equal(first[1], last[1])


def test_classes_stand_on_axis_one_when_both_would_fit():
    assert class_axis(torch.zeros(2, 7, 7), torch.zeros(2, 7, dtype=torch.long)) == 1


def test_a_later_ambiguous_batch_is_read_like_the_first():
    output = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    rows, _ = labelled(output, torch.zeros(2, 3, dtype=torch.long), -1)
    assert torch.equal(rows, output.flatten(0, 1).double().log_softmax(-1))


def test_log_softmax_twice_is_once():
    output = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = log_probabilities(output, 1)
    assert torch.allclose(log_probabilities(once, 1), once, atol=1e-15)


@pytest.mark.parametrize(
    ("output", "target"), [((4, 3), (5,)), ((4,), (4,)), ((4, 1), (4,)), ((4, 3), (4, 1)), ((4, 3, 6), (4, 5))]
)
def test_shapes_that_do_not_fit_are_named(output, target):
    with pytest.raises(DataError, match=rf"{output}.*{target}".replace("(", r"\(").replace(")", r"\)")):
        class_axis(torch.zeros(output), torch.zeros(target, dtype=torch.long))


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_beyond_the_outputs_is_named(label):
    with pytest.raises(DataError, match=f"{label}.*3 classes"):
        labelled(torch.zeros(2, 3), torch.tensor([1, label]), 1)


def test_objects_with_logits_are_opened_and_others_refused():
    logits = torch.zeros(2, 3)
    assert tensor_of(SimpleNamespace(logits=logits)) is logits
    with pytest.raises(DataError, match="returned a tuple"):
        tensor_of((logits,))


def test_a_column_of_outputs_fits_flat_targets_and_nothing_else_is_broadcast():
    rows, _ = numbers(torch.ones(4, 1), torch.zeros(4))
    assert rows.shape == (4,)
    with pytest.raises(DataError, match="equal shapes"):
        numbers(torch.ones(4, 1), torch.zeros(4, 4))

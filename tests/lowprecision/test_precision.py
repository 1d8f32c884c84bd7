import copy

import pytest
import torch
from torch import nn

from weightbank.errors import FormatError, PrecisionError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Native
from weightbank.lowprecision import FIRST, LAST, Precision, exempt, override


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2))


def test_swalp_small_blocks_share_exponents_as_published() -> None:
    precision = Precision.swalp(bits=6)
    small, whole = BlockFloatingPoint(6, block=ByDimensions()), BlockFloatingPoint(6)
    assert precision.weights == precision.gradients == precision.momentum == precision.accumulator == small
    assert precision.activations == precision.errors == whole
    assert Precision.swalp(6, small_block=False).weights == whole
    assert precision.rounding == "stochastic"


def test_formats_are_given_by_name_and_the_value_is_hashable() -> None:
    precision = Precision(weights="bfp8", gradients="Native('bfloat16')")
    assert precision.weights == BlockFloatingPoint(8, block=64)
    assert precision.gradients == Native("bfloat16")
    assert hash(precision) == hash(Precision(weights="bfp8", gradients="Native('bfloat16')"))


def test_straight_through_rounds_to_nearest_unless_told_otherwise() -> None:
    assert Precision(weights="bfp8", straight_through=True).rounding == "nearest"
    assert Precision(weights="bfp8", straight_through=True, rounding="stochastic").rounding == "stochastic"


def test_the_last_matching_rule_wins_and_unnamed_quantities_stay() -> None:
    rules = (exempt("2.*"), override("2.0", weights="bfp4"))
    formats = Precision.swalp(rules=rules).resolve(network())
    assert formats["2.0"].weights == BlockFloatingPoint(4, block=32)
    assert formats["2.0"].gradients is None
    assert formats["2.1"].activations is None
    assert formats["1"].activations == BlockFloatingPoint(8)


def test_first_and_last_are_the_outermost_modules_with_weights() -> None:
    formats = Precision.swalp(rules=(exempt(FIRST), exempt(LAST))).resolve(network())
    assert [name for name, chosen in formats.items() if chosen.weights is None] == ["0", "3"]


def test_a_rule_can_quantize_the_outputs_of_any_class() -> None:
    formats = Precision(rules=(override(nn.Linear, errors="bfp8"),)).resolve(network())
    assert [name for name, chosen in formats.items() if chosen.errors is not None] == ["0", "2.0", "3"]


def test_mistakes_are_refused_with_what_there_is() -> None:
    with pytest.raises(PrecisionError, match=r"matches 'features\.\*'; there are: 0, 1"):
        Precision(rules=(exempt("features.*"),)).resolve(network())
    with pytest.raises(PrecisionError, match="override got weight; there are: weights, gradients"):
        override("0", weight="bfp8")
    with pytest.raises(PrecisionError, match="order='published' rounds the momentum"):
        Precision(gradients="bfp8", order="published")
    with pytest.raises(FormatError, match="bfp99"):
        Precision(weights="bfp99")


def test_models_without_weights_can_have_activations_only() -> None:
    model = nn.Sequential(nn.ReLU())
    with Precision(activations="BlockFloatingPoint(2)").attached(model):
        assert len(model(torch.randn(100)).unique()) <= 4


def test_rules_of_the_wrong_kind_are_refused() -> None:
    bare = object.__new__(Precision)  # the tests' own type checks would refuse first
    for name, field in Precision.__dataclass_fields__.items():
        object.__setattr__(bare, name, field.default)
    for name, value, message in (
        ("rules", exempt(nn.ReLU), "wanted a tuple of override"),
        ("seed", "a", "seed='a'; wanted a whole number"),
    ):
        wrong = copy.copy(bare)
        object.__setattr__(wrong, name, value)
        with pytest.raises(PrecisionError, match=message):
            wrong.__post_init__()

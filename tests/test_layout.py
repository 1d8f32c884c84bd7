import pytest
import torch
from torch import nn

from weightbank.errors import LayoutError
from weightbank.layout import Layout, everything, within


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.outer.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.outer(self.norm(self.inner(x)))
        return out


def test_ravel_then_unravel_gives_the_same_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Linear(5, 2))
    layout = Layout.of(model)
    params = layout.unravel(layout.ravel(model))
    assert list(params) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert torch.equal(params[name], parameter)


def test_ravel_equals_concatenating_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    by_hand = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    assert torch.equal(Layout.of(model).ravel(model), by_hand)


def test_unravel_returns_views_of_the_vector() -> None:
    layout = Layout.of(nn.Linear(3, 2))
    theta = torch.zeros(layout.size)
    layout.unravel(theta)["bias"].fill_(7)
    assert theta[layout.slice("bias")].tolist() == [7, 7]


def test_tied_weights_are_there_once_and_buffers_never() -> None:
    layout = Layout.of(Tied())
    assert layout.names == ("inner.weight", "inner.bias", "outer.bias", "norm.weight", "norm.bias")
    assert layout.size == 16 + 4 + 4 + 4 + 4


def test_assigning_a_tied_model_reaches_both_uses() -> None:
    model = Tied()
    layout = Layout.of(model)
    layout.assign(model, torch.arange(layout.size, dtype=torch.float32))
    assert model.outer.weight is model.inner.weight
    assert model.outer.weight.flatten().tolist() == list(range(16))


def test_frozen_weights_are_left_out_unless_asked_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert Layout.of(model).size == 6
    assert Layout.of(model, where=everything).size == 12


def test_a_last_layer_can_be_chosen_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    assert Layout.of(model, where=within("1")).names == ("1.weight", "1.bias")


def test_fingerprint_depends_on_names_and_shapes_alone() -> None:
    first, same = Layout.of(nn.Linear(3, 2)), Layout.of(nn.Linear(3, 2).double())
    assert first.fingerprint == same.fingerprint == "db39a853e49d147e"
    assert first.fingerprint != Layout.of(nn.Linear(2, 3)).fingerprint
    assert first.fingerprint != Layout.of(nn.Sequential(nn.Linear(3, 2))).fingerprint


def test_description_parses_back_to_the_same_layout() -> None:
    layout = Layout.of(Tied())
    assert Layout.parse(layout.describe()) == layout


@pytest.mark.parametrize(
    "described",
    [
        [],
        "weights",
        [{"name": "w", "shape": [-1], "offset": 0, "dtype": "float32"}],
        [{"name": "w", "shape": [2], "offset": 5, "dtype": "float32"}],
        [{"name": "w", "shape": [2], "offset": 0, "dtype": "load"}],
        [{"shape": [2], "offset": 0, "dtype": "float32"}],
        [None],
    ],
)
def test_foreign_descriptions_are_refused(described: object) -> None:
    with pytest.raises(LayoutError):
        Layout.parse(described)


def test_a_half_precision_model_gets_views_and_a_mixed_one_its_own_dtypes() -> None:
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2))
    layout = Layout.of(model)
    assert layout.dtype == torch.float32
    params = layout.unravel(layout.ravel(model))
    assert params["0.weight"].dtype == torch.bfloat16
    assert params["1.weight"].dtype == torch.float32


def test_wrong_vectors_and_models_name_both_sizes() -> None:
    layout = Layout.of(nn.Linear(3, 2))
    with pytest.raises(LayoutError, match=r"shape \(7,\) came; this layout has \(8,\)"):
        layout.unravel(torch.zeros(7))
    with pytest.raises(LayoutError, match="'weight' came as"):
        layout.ravel(nn.Linear(2, 2))
    with pytest.raises(LayoutError, match="is missing"):
        layout.ravel({"weight": torch.zeros(2, 3)})
    with pytest.raises(LayoutError, match="no weights chosen"):
        Layout.of(nn.ReLU())
    with pytest.raises(LayoutError, match="complex"):
        Layout.of(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(LayoutError, match="lazy"):
        Layout.of(nn.LazyLinear(3))


def test_a_tied_weight_is_chosen_by_any_of_its_names() -> None:
    layout = Layout.of(Tied(), where=within("outer"))
    assert layout.names == ("inner.weight", "outer.bias")

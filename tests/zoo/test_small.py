import pytest
import torch

from weightbank.errors import LayoutError
from weightbank.zoo import MODELS, build, mlp, small_cnn


def count(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_mlp_equals_the_formula():
    net = mlp(6, 5, 4, 3)
    x = torch.rand(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2, w3, b3 = net.parameters()
    hidden = (x.reshape(2, 6) @ w1.T + b1).clamp(min=0)
    hidden = (hidden @ w2.T + b2).clamp(min=0)
    torch.testing.assert_close(net(x), hidden @ w3.T + b3)


@pytest.mark.parametrize("sizes", [(), (64,), (64, -1, 10)])
def test_mlp_refuses_too_few_or_empty_layers(sizes):
    with pytest.raises(LayoutError, match="two or more positive sizes"):
        mlp(*sizes)


@pytest.mark.parametrize(("channels", "size", "weights"), [(1, 8, 20_698), (1, 28, 42_298), (3, 32, 49_786)])
def test_small_cnn_has_the_documented_number_of_weights(channels, size, weights):
    convolutions = 9 * (channels * 16 + 16 * 32 + 32 * 48)
    head = 48 * (size // 4) ** 2 * 10 + 10
    batch_norm = 2 * (16 + 32 + 48)
    assert count(small_cnn(channels, size)) == convolutions + batch_norm + head == weights
    assert count(small_cnn(channels, size, batch_norm=False)) == convolutions + batch_norm // 2 + head


def test_small_cnn_has_batch_norm_only_where_asked():
    def norms(model: torch.nn.Module) -> int:
        return sum(isinstance(part, torch.nn.BatchNorm2d) for part in model.modules())

    assert norms(small_cnn()) == 3
    assert norms(small_cnn(batch_norm=False)) == 0
    assert not list(small_cnn(batch_norm=False).buffers())


@pytest.mark.parametrize("arguments", [{"size": 3}, {"channels": 0}, {"classes": 0}])
def test_small_cnn_refuses_what_leaves_nothing(arguments):
    with pytest.raises(LayoutError, match="size >= 4"):
        small_cnn(**arguments)


def test_build_makes_a_new_model_each_time():
    assert build("mlp_digits") is not build("mlp_digits")


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(LayoutError, match="'model_5fc'") as error:
        build("model_5fc")
    assert all(name in str(error.value) for name in MODELS)

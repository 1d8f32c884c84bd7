import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightbank.zoo import vgg11, vgg16, vgg19


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("model", "pooled_after"), [(vgg16, {2, 4, 7, 10, 13}), (vgg19, {2, 4, 8, 12, 16})])
def test_cifar_networks_equal_the_formula_when_dropout_is_off(model, pooled_after, batch_norm):
    net = model(batch_norm=batch_norm).eval()
    layers = [(part, list(part.parameters())) for part in net.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = x
    for number in range(1, max(pooled_after) + 1):
        weight, bias = layers[number - 1][1]
        y = F.conv2d(y, weight, bias, padding=1)
        if batch_norm:
            y = y / (1 + 1e-5) ** 0.5  # fresh statistics: mean 0, variance 1
        y = y.relu()
        if number in pooled_after:
            y = F.max_pool2d(y, 2)
    (w1, b1), (w2, b2), (w3, b3) = (parameters for _, parameters in layers[-3:])
    y = ((y.flatten(1) @ w1.T + b1).relu() @ w2.T + b2).relu()
    torch.testing.assert_close(net(x), y @ w3.T + b3, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_follows_every_convolution_where_asked():
    with torch.device("meta"):
        plain, normed = vgg16(), vgg16(batch_norm=True)
    kinds = [type(part) for part in normed.features]
    after = [kinds[place + 1] for place, kind in enumerate(kinds) if kind is nn.Conv2d]
    assert after == [nn.BatchNorm2d] * 13
    assert nn.BatchNorm2d not in [type(part) for part in plain.features]
    assert len(list(plain.parameters())) == 32


def test_dropout_acts_before_the_first_two_linear_layers_in_training():
    kinds = [type(part) for part in vgg16().classifier]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Linear]


def test_vgg11_for_a_thousand_classes_is_the_imagenet_network():
    with torch.device("meta"):
        net = vgg11(1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == 132_863_336  # torchvision's count
    assert not any(isinstance(part, nn.Dropout) for part in net.modules())
    assert [name for name, _ in net.named_parameters()][::2] == [
        *(f"features.{place}.weight" for place in (0, 3, 6, 8, 11, 13, 16, 18)),
        *(f"classifier.{place}.weight" for place in (0, 2, 4)),
    ]


@pytest.mark.slow
def test_vgg11_linear_layers_start_small_and_unbiased():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = vgg11()
    for place in (0, 2, 4):
        layer = net.classifier[place]
        # deviation of a sample deviation: 1/sqrt(2n), four of them
        assert layer.weight.std().item() == pytest.approx(0.01, rel=4 / (2 * layer.weight.numel()) ** 0.5)
        assert not layer.bias.any()


def test_rectifiers_of_vgg16_are_the_published_rounding_points():
    with torch.device("meta"):
        assert sum(isinstance(part, nn.ReLU) for part in vgg16().modules()) == 15

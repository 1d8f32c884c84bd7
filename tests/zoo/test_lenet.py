import pytest
import torch
import torch.nn.functional as F

from weightbank.zoo import convnet, lenet, mlp3, mlp4


def rows(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model", "sizes"), [(mlp3, (784, 32, 32, 10)), (mlp4, (784, 32, 32, 32, 10))])
def test_dense_networks_equal_the_formula(model, sizes):
    net = model()
    x = rows(3, 1, 28, 28)
    *hidden, (weight, bias) = zip(*[iter(net.parameters())] * 2, strict=True)
    assert [layer[0].shape for layer in [*hidden, (weight, bias)]] == [*zip(sizes[1:], sizes[:-1], strict=True)]
    y = x.reshape(3, 784)
    for w, b in hidden:
        y = (y @ w.T + b).clamp(min=0)
    torch.testing.assert_close(net(x), y @ weight.T + bias)


def test_lenet_has_the_published_weights_by_layer():
    assert [p.numel() for p in lenet().parameters() if p.ndim > 1] == [54, 864, 94_080, 10_080, 840]


@pytest.mark.parametrize(("model", "size", "pools"), [(lenet, (1, 28, 28), {1, 2}), (convnet, (3, 32, 32), {2, 4, 6})])
def test_convolutional_networks_equal_the_formula(model, size, pools):
    net = model()
    state = net.state_dict()
    x = rows(2, *size)
    y = x
    for number in range(1, max(pools) + 1):
        y = F.conv2d(y, state[f"conv{number}.weight"], state[f"conv{number}.bias"], padding=1).clamp(min=0)
        if number in pools:
            n, c, height, width = y.shape
            y = y.reshape(n, c, height // 2, 2, width // 2, 2).amax((3, 5))
    y = y.reshape(2, -1)
    for number in (1, 2):
        y = (y @ state[f"fc{number}.weight"].T + state[f"fc{number}.bias"]).clamp(min=0)
    # the same sums in another order: a few units of float32
    torch.testing.assert_close(net(x), y @ state["fc3.weight"].T + state["fc3.bias"])

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightbank.zoo import preresnet20, preresnet164
from weightbank.zoo.preresnet import BasicBlock, Bottleneck


def norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize(("model", "blocks", "layers"), [(preresnet20, 3, 2), (preresnet164, 18, 3)])
def test_forward_equals_the_formula(model, blocks, layers):
    net = model().eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in net.state_dict().items():
        if value.ndim == 1 and "fc" not in name:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.3)
    state = net.state_dict()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, first = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            z = y
            for number in range(1, layers + 1):
                weight = state[f"{at}.conv{number}.weight"]
                stride = first if number == (1 if layers == 2 else 2) else 1
                z = norm(state, f"{at}.bn{number}", z).relu()
                z = F.conv2d(z, weight, stride=stride, padding=weight.shape[-1] // 2)
            if f"{at}.downsample.0.weight" in state:
                y = F.conv2d(y, state[f"{at}.downsample.0.weight"], stride=first)
            y = y + z
    expected = norm(state, "bn", y).relu().mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    # up to 164 layers of float32 in another order, relative to the largest logit
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("model", "convolutions", "tensors"), [(preresnet20, 1 + 18 + 2, 21 + 2 * 19 + 2), (preresnet164, 166, 494)]
)
def test_convolutions_and_tensors_are_as_many_as_the_depth_says(model, convolutions, tensors):
    with torch.device("meta"):
        net = model()
    assert sum(isinstance(part, nn.Conv2d) for part in net.modules()) == convolutions
    assert len(list(net.parameters())) == tensors


@pytest.mark.parametrize("block", [BasicBlock(8, 8), Bottleneck(8, 8)])
def test_a_block_whose_last_weights_are_zero_passes_its_input_on(block):
    last = [part for part in block.modules() if isinstance(part, nn.Conv2d)][-1]
    last.weight.data.zero_()
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("model", "points"), [(preresnet20, 37), (preresnet164, 325)])
def test_convolutions_and_rectifiers_of_the_body_are_the_published_rounding_points(model, points):
    with torch.device("meta"):
        net = model()
    body = [part for name, part in net.named_modules() if name != "relu" and "downsample" not in name]
    assert sum(isinstance(part, nn.Conv2d | nn.ReLU) for part in body) == points

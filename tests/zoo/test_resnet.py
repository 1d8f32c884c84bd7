import torch
import torch.nn.functional as F

from weightbank.zoo import resnet18
from weightbank.zoo.resnet import BasicBlock

STRIDES = {1: 1, 2: 2, 3: 2, 4: 2}


def norm(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def disturb_norms(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.ndim == 1 and "fc" not in name:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def test_forward_equals_the_formula():
    net = resnet18().eval()
    disturb_norms(net)
    state = net.state_dict()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)).relu()
    for stage, first in STRIDES.items():
        for block in (0, 1):
            at, stride = f"layer{stage}.{block}", first if block == 0 else 1
            z = norm(state, f"{at}.bn1", F.conv2d(y, state[f"{at}.conv1.weight"], stride=stride, padding=1)).relu()
            z = norm(state, f"{at}.bn2", F.conv2d(z, state[f"{at}.conv2.weight"], padding=1))
            if f"{at}.downsample.0.weight" in state:
                y = norm(state, f"{at}.downsample.1", F.conv2d(y, state[f"{at}.downsample.0.weight"], stride=stride))
            y = (y + z).relu()
    expected = y.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    # 18 layers of float32 in another order, relative to logits that have grown with depth
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_only_blocks_that_change_shape_have_a_shortcut_with_weights():
    names = [name for name, _ in resnet18().named_parameters() if "downsample.0" in name]
    assert names == [f"layer{stage}.0.downsample.0.weight" for stage in (2, 3, 4)]


def test_a_block_with_zero_weights_rectifies_its_input():
    block = BasicBlock(4, 4).eval()
    block.conv2.weight.data.zero_()
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x.clamp(min=0))

import torch
import torch.nn.functional as F

from weightbank.zoo import densenet121

COUNTS = {1: 6, 2: 12, 3: 24, 4: 16}


def norm_relu(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()


def test_forward_equals_the_formula():
    net = densenet121().eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in net.state_dict().items():
        if value.ndim == 1 and "classifier" not in name:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.6)
    state = {name.removeprefix("features."): value for name, value in net.state_dict().items()}
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = norm_relu(state, "norm0", F.conv2d(x, state["conv0.weight"], stride=2, padding=3))
    y = F.max_pool2d(y, 3, stride=2, padding=1)
    for block, count in COUNTS.items():
        maps = [y]
        for layer in range(1, count + 1):
            at = f"denseblock{block}.denselayer{layer}"
            z = F.conv2d(norm_relu(state, f"{at}.norm1", torch.cat(maps, 1)), state[f"{at}.conv1.weight"])
            maps.append(F.conv2d(norm_relu(state, f"{at}.norm2", z), state[f"{at}.conv2.weight"], padding=1))
        y = torch.cat(maps, 1)
        if block < 4:
            at = f"transition{block}"
            y = F.avg_pool2d(F.conv2d(norm_relu(state, f"{at}.norm", y), state[f"{at}.conv.weight"]), 2)
    pooled = norm_relu(state, "norm5", y).mean((2, 3))
    expected = pooled @ state["classifier.weight"].T + state["classifier.bias"]
    # 121 layers of float32 in another order, relative to the largest logit
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_for_a_thousand_classes_it_is_the_imagenet_network():
    with torch.device("meta"):
        net = densenet121(1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == 7_978_856  # torchvision's count

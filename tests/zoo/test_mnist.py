import pytest
import torch
import torch.nn.functional as F

from weightbank.errors import LayoutError
from weightbank.zoo import ConvNet, FullyConnected, model_2conv2fc, model_2fc, model_3fc, model_4fc


def dense(*sizes: int) -> list[tuple[str, tuple[int, ...]]]:
    named = []
    for number in range(1, len(sizes)):
        named += [(f"fc{number}.weight", (sizes[number], sizes[number - 1])), (f"fc{number}.bias", (sizes[number],))]
    return named


PUBLISHED = {
    model_2conv2fc: (
        21_840,
        [
            ("conv1.weight", (10, 1, 5, 5)),
            ("conv1.bias", (10,)),
            ("conv2.weight", (20, 10, 5, 5)),
            ("conv2.bias", (20,)),
            ("fc1.weight", (50, 320)),
            ("fc1.bias", (50,)),
            ("fc2.weight", (10, 50)),
            ("fc2.bias", (10,)),
        ],
    ),
    model_2fc: (795_010, dense(784, 1000, 10)),
    model_3fc: (1_290_510, dense(784, 1000, 500, 10)),
    model_4fc: (2_797_010, dense(784, 1000, 1000, 1000, 10)),
}
DENSE = [model_2fc, model_3fc, model_4fc]


@pytest.mark.parametrize("model", PUBLISHED)
def test_weights_have_the_published_order_shapes_and_count(model):
    count, shapes = PUBLISHED[model]
    weights = list(model().named_parameters())
    assert [(name, tuple(weight.shape)) for name, weight in weights] == shapes
    assert sum(weight.numel() for _, weight in weights) == count


@pytest.mark.parametrize("model", PUBLISHED)
def test_outputs_are_log_probabilities_of_ten_classes(model):
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    log_probabilities = model()(x)
    assert log_probabilities.shape == (3, 10)
    # ten float32 exponentials summed: a few units of 6e-8
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(3), atol=1e-6, rtol=0)
    y = torch.tensor([0, 9, 4])
    # log_softmax leaves log-probabilities as they are, so both losses are one
    torch.testing.assert_close(F.cross_entropy(log_probabilities, y), F.nll_loss(log_probabilities, y))


@pytest.mark.parametrize("model", DENSE)
def test_dense_models_take_images_and_flat_rows_alike(model):
    net = model()
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), net(x.reshape(2, 784)))


def test_dense_forward_equals_the_formula():
    net = FullyConnected(4, 3, 2)
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2 = net.parameters()
    logits = (x @ w1.T + b1).clamp(min=0) @ w2.T + b2
    torch.testing.assert_close(net(x), logits - logits.logsumexp(1, keepdim=True))


def test_conv_forward_equals_the_formula_when_dropout_is_off():
    net = ConvNet().eval()
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2, w3, b3, w4, b4 = net.parameters()
    for w, b in ((w1, b1), (w2, b2)):
        patches = x.unfold(2, 5, 1).unfold(3, 5, 1) if w is w1 else hidden.unfold(2, 5, 1).unfold(3, 5, 1)
        convolved = torch.einsum("nchwij,ocij->nohw", patches, w) + b[:, None, None]
        n, c, height, width = convolved.shape
        hidden = convolved.reshape(n, c, height // 2, 2, width // 2, 2).amax((3, 5)).clamp(min=0)
    logits = (hidden.reshape(2, 320) @ w3.T + b3).clamp(min=0) @ w4.T + b4
    torch.testing.assert_close(net(x), logits.log_softmax(1))


@pytest.mark.parametrize("place", ["conv2_drop", "fc1_drop"])
def test_each_dropout_acts_in_training_only(place):
    net = model_2conv2fc().eval()
    x = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    still = net(x)
    assert torch.equal(still, net(x))
    net.get_submodule(place).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(still, net(x))


def test_fresh_weights_come_from_the_default_generator():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = model_2conv2fc()
        torch.manual_seed(3)
        by_hand = [
            torch.nn.Conv2d(1, 10, 5),
            torch.nn.Conv2d(10, 20, 5),
            torch.nn.Linear(320, 50),
            torch.nn.Linear(50, 10),
        ]
        other = model_2conv2fc()
    expected = [weight for layer in by_hand for weight in layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), expected, strict=True))
    assert not torch.equal(first.fc2.weight, other.fc2.weight)


@pytest.mark.parametrize("sizes", [(), (784,), (784, 0, 10)])
def test_too_few_or_empty_layers_are_refused(sizes):
    with pytest.raises(LayoutError, match="two or more positive sizes"):
        FullyConnected(*sizes)

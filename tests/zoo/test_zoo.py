import pytest
import torch

from weightbank.zoo import MODELS, PAGE_NETWORKS, build

INPUTS = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "tiny_imagenet": (3, 64, 64)}
INPUTS["cifar100"] = INPUTS["cifar10"]
CLASSES = {"tiny_imagenet": 200, "cifar100": 100}
COUNTS = {  # published: weights on devices, biases, BatchNorm parameters
    "mlp3_mnist": (26_432, 74, 0),
    "mlp4_mnist": (27_456, 106, 0),
    "lenet_mnist": (105_918, 236, 0),
    "convnet_cifar10": (6_397_632, 2_954, 0),
    "resnet18_cifar10": (11_164_352, 10, 9_600),
    "resnet18_tiny_imagenet": (11_261_632, 200, 9_600),
    "vgg11_tiny_imagenet": (129_574_592, 11_144, 0),
    "densenet121_cifar10": (6_880_448, 10, 83_648),
}
TOTALS = {
    "vgg16_cifar10": 15_245_130,
    "vgg16bn_cifar10": 15_253_578,
    "preresnet20_cifar10": 272_282,
    "preresnet164_cifar10": 1_703_258,
}
DRAWN = [
    "mlp3_mnist",
    "lenet_mnist",
    "resnet18_cifar10",
    "densenet121_cifar10",
    "vgg16bn_cifar10",
    "preresnet20_cifar10",
]


@pytest.mark.parametrize("name", COUNTS)
def test_weights_biases_and_norms_are_as_many_as_published(name, grouped):
    with torch.device("meta"):
        assert grouped(build(name)) == COUNTS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_all_parameters_together_are_as_many_as_published(name, grouped):
    with torch.device("meta"):
        assert sum(grouped(build(name))) == TOTALS[name]


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("pages_")])
def test_every_named_model_maps_its_data_to_its_classes(name):
    data = name.partition("_")[2]
    with torch.device("meta"):
        model = build(name)
        out = model(torch.empty(2, *INPUTS.get(data, (1, 28, 28))))
    assert out.shape == (2, CLASSES.get(data, 10))


@pytest.mark.parametrize("name", PAGE_NETWORKS)
def test_page_networks_map_their_inputs_to_their_classes(name):
    network = PAGE_NETWORKS[name]
    with torch.device("meta"):
        assert build(f"pages_{name}")(torch.empty(2, *network.shape)).shape == (2, network.dense[-1])


@pytest.mark.parametrize("name", DRAWN)
def test_one_seed_makes_one_model(name):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = build(name)
        torch.manual_seed(5)
        second = build(name)
        third = build(name)
    states = [list(model.state_dict().values()) for model in (first, second, third)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    drawn = [number for number, value in enumerate(states[0]) if value.ndim >= 2]
    assert not any(torch.equal(states[0][number], states[2][number]) for number in drawn)

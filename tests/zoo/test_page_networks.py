import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weightbank.data import ImageData, mnist_family, parquet_images
from weightbank.errors import CorruptError, LayoutError, NonFiniteError, StoreError
from weightbank.layout import Layout
from weightbank.zoo import PAGE_NETWORKS, PUBLISHED, PageNetwork, load_page_network, read_page_vector
from weightbank.zoo.page_networks import UnitNorm, published_order, published_shapes

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package dataset-fashion-mnist puts it
SIZES = {
    "mnist": 45_706,
    "gsc": 65_531,
    "gtsrb": 66_475,
    "cifar10": 45_490,
    "svhn": 45_490,
    "us8k": 66_854,
    "fmnist": 69_966,
    "hhar": 65_114,
    "esc10": 65_154,
    "obs": 72_012,
}
SMALL = PageNetwork((2, 11, 9), ((3, 2, 3), (2, 2, 4)), (5, 3))


def stored(name: str) -> Path:
    place = os.environ.get("WEIGHTBANK_DATA")
    root = Path(place) if place else Path(__file__).parents[3] / "shared" / "data"
    if not (root / name).exists():
        pytest.skip(f"no real data: {name} is not below WEIGHTBANK_DATA")
    return root / name


def drawn(network: PageNetwork, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) / 3 for shape in published_shapes(network)]


def flat(tensors: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([tensor.ravel() for tensor in tensors])


def channels_last(network: PageNetwork, tensors: list[np.ndarray], image: np.ndarray) -> np.ndarray:
    """The published forward pass of one image (height, width, channels), by loops over places."""
    x = image / np.sqrt((image**2).sum()) if network.unit_norm else image
    pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
    for weight, bias in pairs[: len(network.convolutions)]:
        height, width = (x.shape[i] - weight.shape[i] + 1 for i in (0, 1))
        out = np.empty((height, width, len(bias)))
        for i in range(height):
            for j in range(width):
                window = x[i : i + weight.shape[0], j : j + weight.shape[1]]
                out[i, j] = np.tensordot(window, weight, 3) + bias
        out = np.where(out > 0, out, 0.2 * out)
        x = np.array(
            [
                [out[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((0, 1)) for j in range(width // 2)]
                for i in range(height // 2)
            ]
        )
    x = x.ravel()
    dense = pairs[len(network.convolutions) :]
    for number, (weight, bias) in enumerate(dense, start=1):
        x = x @ weight + bias
        if number < len(dense):
            x = 1 / (1 + np.exp(-x)) if network.hidden == "sigmoid" else np.where(x > 0, x, 0.2 * x)
    return x


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_ten_have_as_many_weights_as_published(name):
    network = PAGE_NETWORKS[name]
    assert network.size == SIZES[name]
    assert Layout.of(network.build()).size == SIZES[name]


def test_all_ten_together_have_607792_weights_and_the_largest_72012():
    assert sum(PAGE_NETWORKS[name].size for name in PUBLISHED) == 607_792
    assert max(network.size for network in PAGE_NETWORKS.values()) == 72_012


@pytest.mark.parametrize(
    "network",
    [SMALL, PageNetwork((2, 11, 9), ((3, 2, 3), (2, 2, 4)), (5, 4, 3), "sigmoid", unit_norm=True)],
    ids=["leaky", "sigmoid"],
)
def test_published_weights_give_the_published_outputs(network, tmp_path):
    tensors = drawn(network)
    np.savez(tmp_path / "net.npz", flat_weight=flat(tensors))
    model = load_page_network(tmp_path / "net.npz", network)
    images = np.random.default_rng(1).normal(size=(4, 11, 9, 2))
    with torch.no_grad():
        out = model(torch.from_numpy(images.transpose(0, 3, 1, 2)).float()).numpy()
    expected = np.stack([channels_last(network, tensors, image) for image in images])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)  # float32 against float64


def test_the_order_is_a_permutation_that_keeps_each_tensor_in_its_place():
    order = published_order(SMALL)
    assert torch.equal(order.sort().values, torch.arange(SMALL.size))
    offset = 0
    for shape, entry in zip(published_shapes(SMALL), Layout.of(SMALL.build()).entries, strict=True):
        size = int(np.prod(shape))
        assert entry.offset == offset
        assert entry.size == size
        assert torch.equal(order[offset : offset + size].sort().values, torch.arange(offset, offset + size))
        offset += size


def test_importances_follow_their_weights(tmp_path):
    tensors = drawn(SMALL)
    np.savez(tmp_path / "net.npz", flat_weight=flat(tensors), flat_fisher=flat(tensors) ** 2)
    theta = read_page_vector(tmp_path / "net.npz", SMALL)
    assert torch.equal(read_page_vector(tmp_path / "net.npz", SMALL, array="flat_fisher"), theta**2)
    assert torch.equal(Layout.of(SMALL.build()).ravel(load_page_network(tmp_path / "net.npz", SMALL)), theta)


def test_numbered_tensors_are_the_same_as_the_flat_vector(tmp_path):
    tensors = drawn(SMALL)
    numbered = {f"tuned_{number:02d}": tensor for number, tensor in enumerate(tensors)}
    np.savez_compressed(tmp_path / "net.npz", flat_weight=flat(tensors), **numbered)
    theta = read_page_vector(tmp_path / "net.npz", SMALL)
    assert torch.equal(read_page_vector(tmp_path / "net.npz", SMALL, array="tuned"), theta)


def test_unit_norm_divides_each_example_and_leaves_zeros():
    x = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert torch.equal(UnitNorm()(x), torch.tensor([[[0.6, 0.8]], [[0.0, 0.0]]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 8, 8), ((3, 3, 4), (3, 3, 4), (3, 3, 4)), (10,)), "an input of 8 x 8 leaves"),
        (((1, 8, 8), (), ()), "at least one dense layer"),
        (((1, 8, 8), ((3, 3, 0),), (10,)), "wanted positive sizes"),
    ],
)
def test_impossible_descriptions_are_refused(arguments, message):
    with pytest.raises(LayoutError, match=message):
        PageNetwork(*arguments)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def encoded(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def promising(shape: tuple[int, ...], content: bytes = b"", kind: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


GOOD = np.zeros(SMALL.size, np.float32)
BAD_FILES = {
    "pickled objects": (encoded(np.array([print] * SMALL.size, object)), CorruptError, "is object"),
    "float64": (encoded(GOOD.astype(np.float64)), CorruptError, "float64"),
    "another size": (encoded(GOOD[:-1]), LayoutError, "give the network it is of"),
    "huge promise": (promising((10**12,)), LayoutError, "has shape"),
    "too few bytes": (encoded(GOOD)[:-1], CorruptError, "bytes its header promises"),
    "too many bytes": (encoded(GOOD) + b"x", CorruptError, "bytes its header promises"),
    "no header": (b"hello", CorruptError, "damaged"),
    "code in the header": (
        promising((SMALL.size,)).replace(b"'<f4'", b"f()  "),
        CorruptError,
        "damaged",
    ),
    "another version": (encoded(GOOD)[:6] + b"\x07" + encoded(GOOD)[7:], CorruptError, "format"),
    "NaN": (encoded(np.full_like(GOOD, np.nan)), NonFiniteError, "NaN or infinite"),
}


@pytest.mark.parametrize(("content", "error", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_arrays_are_refused(tmp_path, content, error, message):
    path = archive(tmp_path / "net.npz", flat_weight=content)
    with pytest.raises(error, match=message):
        read_page_vector(path, SMALL)


def test_transposed_tensors_are_refused(tmp_path):
    tensors = drawn(SMALL)
    tensors[0] = np.asfortranarray(tensors[0])
    np.savez(tmp_path / "net.npz", **{f"weight_{number:02d}": tensor for number, tensor in enumerate(tensors)})
    with pytest.raises(CorruptError, match="order F; wanted float32, C"):
        read_page_vector(tmp_path / "net.npz", SMALL, array="weight")


def test_absent_arrays_are_answered_with_those_there_are(tmp_path):
    path = archive(tmp_path / "net.npz", flat_weight=encoded(GOOD), names=encoded(GOOD))
    with pytest.raises(LayoutError, match="no array 'flat_fisher_00'; it has flat_weight, names"):
        read_page_vector(path, SMALL, array="flat_fisher")


def test_absent_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        read_page_vector(tmp_path / "net.npz", SMALL)
    (tmp_path / "net.npz").write_bytes(b"no archive")
    with pytest.raises(CorruptError, match=r"no \.npz file"):
        read_page_vector(tmp_path / "net.npz", SMALL)


@pytest.mark.parametrize("seed", range(3))
def test_garbled_files_are_read_or_refused(tmp_path, seed):
    generator = np.random.default_rng(seed)
    good = np.frombuffer(archive(tmp_path / "net.npz", flat_weight=encoded(GOOD + 1)).read_bytes(), np.uint8)
    assert read_page_vector(tmp_path / "net.npz", SMALL).eq(1).all()
    refused = 0
    for _ in range(100):
        bad = good.copy()
        bad[generator.integers(0, len(bad), 3)] ^= generator.integers(1, 256, 3, dtype=np.uint8)
        (tmp_path / "net.npz").write_bytes(bad.tobytes())
        try:
            assert read_page_vector(tmp_path / "net.npz", SMALL).shape == (SMALL.size,)
        except (CorruptError, LayoutError, NonFiniteError):
            refused += 1
    assert refused > 0


def right(name: str, data: ImageData) -> int:
    model = load_page_network(stored(f"pages/{name}.npz"), PAGE_NETWORKS[name])
    x, y = data.test
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in x.split(2000)])
    return int((found == y).sum())


def test_published_mnist_network_gets_9808_of_10000_right():
    assert right("mnist", mnist_family(stored("mnist"))) == 9808


def test_published_fashion_network_gets_8749_of_10000_right():
    if not FASHION.is_dir():
        pytest.skip("no Fashion-MNIST: the Debian package dataset-fashion-mnist is not installed")
    assert right("fmnist", mnist_family(FASHION)) == 8749


@pytest.mark.slow
def test_published_cifar10_network_gets_5404_of_10000_jpeg_images_right():
    assert right("cifar10", parquet_images(stored("cifar10"))) == 5404


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_of_the_network_described(name):
    theta = read_page_vector(stored(f"pages/{name}.npz"), PAGE_NETWORKS[name])
    assert torch.equal(read_page_vector(stored(f"pages/{name}.npz"), PAGE_NETWORKS[name], array="weight"), theta)


def test_exact_fisher_of_the_published_mnist_network_is_found_on_its_data():
    """The shipped vector sums over 500 examples and all classes; other examples give the same large entries."""
    path, network = stored("pages/mnist.npz"), PAGE_NETWORKS["mnist"]
    shipped = read_page_vector(path, network, array="fisher_exact")
    model = load_page_network(path, network)
    x = mnist_family(stored("mnist")).train[0][:40]
    total = torch.zeros_like(shipped)
    for image in x:
        logits = model(image[None])
        logs, odds = F.log_softmax(logits, 1)[0], logits.softmax(1)[0].detach()
        for log, odd in zip(logs, odds, strict=True):
            grads = torch.autograd.grad(log, list(model.parameters()), retain_graph=True)
            total += odd * torch.cat([grad.flatten() for grad in grads]) ** 2
    both = torch.stack([shipped, total]).clamp_min(1e-12).log()
    assert torch.corrcoef(both)[0, 1] > 0.9

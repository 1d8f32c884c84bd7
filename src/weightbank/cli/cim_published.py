"""One experiment of selective write-verify with the options of its published program (arXiv 2202.08395)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightbank.cim import Cells, Device, by_weight, each_chip, noise_injection, rank
from weightbank.cim.policies import Spend, programming
from weightbank.cli.cim_methods import POLICIES, Scores, spend
from weightbank.cli.cim_network import Network, test_batches
from weightbank.cli.cim_scores import cells_of, clean_score
from weightbank.cli.console import note, say, say_wrapped, show_json, show_table
from weightbank.data import load
from weightbank.errors import DataError
from weightbank.formats import BlockFloatingPoint
from weightbank.lowprecision import LAST, Precision, exempt, override
from weightbank.task import Task, TensorBatches
from weightbank.training import epochs
from weightbank.types import Flat
from weightbank.zoo import build, load_published

BATCH = 128
COLOUR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TINY = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Published:
    """A network by its published name: the zoo's, the images it takes, their statistics, and its quantizer's bits N.

    The published quantizer has 2^N steps on either side of zero; block floating point of N + 1 bits has 2^(N-1) to 2^N,
    its step a power of two. Biases and activations are quantized like weights, normalisation is not.
    """

    model: str
    shape: tuple[int, int, int]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    bits: int | None = None
    last_bits: int | None = None
    sgd: bool = False

    @property
    def precision(self) -> Precision | None:
        """Quantized weights and activations with straight-through gradients; None for a network in full precision."""
        if self.bits is None:
            return None
        grid, rules = BlockFloatingPoint(min(16, self.bits + 1)), []
        if any(isinstance(module, nn.BatchNorm2d) for module in build(self.model).modules()):
            rules.append(exempt(nn.BatchNorm2d))
        if self.last_bits is not None:
            rules.append(override(LAST, weights=BlockFloatingPoint(self.last_bits + 1)))
        return Precision(weights=grid, activations=grid, straight_through=True, rules=tuple(rules))


_GREY, _SMALL, _LARGE = (1, 28, 28), (3, 32, 32), (3, 64, 64)
NETWORKS: Mapping[str, Published] = MappingProxyType(
    {
        "MLP3": Published("mlp3_mnist", _GREY),
        "MLP4": Published("mlp4_mnist", _GREY),
        "LeNet": Published("lenet_mnist", _GREY),
        "CIFAR": Published("convnet_cifar10", _SMALL, COLOUR),
        "Res18": Published("resnet18_cifar10", _SMALL, COLOUR, sgd=True),
        "TIN": Published("resnet18_tiny_imagenet", _LARGE, TINY, sgd=True),
        "QLeNet": Published("lenet_mnist", _GREY, bits=4),
        "QCIFAR": Published("convnet_cifar10", _SMALL, COLOUR, bits=6),
        "QRes18": Published("resnet18_cifar10", _SMALL, COLOUR, bits=8, sgd=True),
        "QDENSE": Published("densenet121_cifar10", _SMALL, COLOUR, bits=8, last_bits=10, sgd=True),
        "QTIN": Published("resnet18_tiny_imagenet", _LARGE, TINY, bits=8, sgd=True),
        "QVGG": Published("vgg11_tiny_imagenet", _LARGE, TINY, bits=16, sgd=True),
    }
)
METHODS = ("SM", "second", "saliency", "SL", "magnitude", "random", "first derivative", *POLICIES)


@dataclass(frozen=True)
class Options:
    """The options of `cim run`, by their published names."""

    model: str
    method: str
    train_epoch: int
    noise_epoch: int
    train_var: float
    dev_var: float
    write_var: float
    mask_p: float
    alpha: float | None
    div: int
    use_mask: bool
    data: str
    pretrained: str | None
    images: int | None
    weight_bits: int
    cell_bits: int
    stderr: float | None
    seed: int
    device: str
    verbose: bool

    def __post_init__(self) -> None:
        if self.model not in NETWORKS:
            raise DataError(f"--model {self.model}: no published network; models are {', '.join(NETWORKS)}")
        if self.method.replace("-", " ") not in METHODS:
            raise DataError(f"--method {self.method}: not known; methods are {', '.join(METHODS)}")


def show_run(options: Options, output: Path | None, *, json: bool) -> None:
    """Train or read the network, rank, verify a fraction, and evaluate so many chips of each kind."""
    published = NETWORKS[options.model]
    precision, task = published.precision, _task(published, options)
    if options.pretrained is not None:
        load_published(task.model, options.pretrained)
    else:
        _train(task, published, options)
    if precision is not None:
        _quantize(task, precision)
    network = Network(task, published.model, options.data)
    if output is not None:
        network.save(output)
    device = Device(options.weight_bits, options.cell_bits, options.dev_var, options.write_var)
    cells = cells_of(network, device)
    nothing = torch.zeros(cells.layout.size, dtype=torch.bool)
    ways = {"nothing verified": programming(cells, nothing), "all verified": programming(cells, ~nothing)}
    if options.use_mask:
        ways[f"{options.mask_p:.4g} by {options.method}"] = _method(network, cells, options)(options.mask_p)
    rows: list[dict[str, Any]] = []
    with _activations(precision, task.model):
        clean = clean_score(task)
        for name, way in ways.items():
            generator = torch.Generator().manual_seed(options.seed)
            found = each_chip(task, way.law, options.noise_epoch, stderr=options.stderr, generator=generator)
            effort = {part: getattr(way, part) for part in ("fraction", "write_cycles", "total_write_cycles", "reads")}
            spread = (found.stderr or 0.0) * math.sqrt(found.n)
            chips = {"mean": found.mean, "stderr": found.stderr, "std": spread, "chips": found.n, "min": found.min}
            rows.append({"verified": name, **effort, **chips, "quantile_05": found.quantile(0.05)})
    if json:
        about = {"options": asdict(options), "weights": task.layout.size, "on_device": cells.count, "clean": clean}
        show_json({**about, "precision": None if precision is None else repr(precision), "results": rows})
        return
    say(f"{options.model} on {options.data}: {cells.count:,} weights on the device; exact, they score {clean:.4f}")
    keys = ("mean", "std", "min", "quantile_05")
    texts = [
        [row["verified"], f"{100 * row['write_cycles']:.2f} %", *(f"{row[key]:.4f}" for key in keys)] for row in rows
    ]
    show_table(["verified", "write cycles", "mean", "std", "worst", "5 % below"], texts)
    say_wrapped(
        f"{rows[0]['chips']} chips each, the same ones; dev_var {options.dev_var:g} and write_var "
        f"{options.write_var:g} are standard deviations in level steps of a cell."
    )


def _task(published: Published, options: Options) -> Task:
    """The network with its images: resized, and normalised where it was trained so."""
    data = load(options.data)
    if data.shape != published.shape:
        note(f"images of {data.shape} in {options.data} are resized to {published.shape}")
    torch.manual_seed(options.seed)
    model = build(published.model)
    classes = model(torch.zeros(2, *published.shape)).shape[1]
    if classes < len(data.classes):
        raise DataError(f"{options.model} tells {classes} classes apart, {options.data} has {len(data.classes)}")
    images = [_fitted(x, published) for x, _ in (data.train, data.test)]
    generator = torch.Generator().manual_seed(options.seed)
    train = TensorBatches(images[0], data.train[1], BATCH, shuffle=True, generator=generator)
    size = test_batches(data).batch_size
    test = TensorBatches(images[1], data.test[1], size)
    return Task(f"{options.model} on {data.name}", model.to(options.device), F.cross_entropy, train, test)


def _fitted(x: Tensor, published: Published) -> Tensor:
    channels, height, width = published.shape
    if tuple(x.shape[2:]) != (height, width):
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if published.statistics is not None:
        mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in published.statistics)
        x = (x - mean) / std
    return x.contiguous()


def _train(task: Task, published: Published, options: Options) -> None:
    """As published: Adam for the small networks, SGD with a cosine schedule for the others, perhaps on noisy chips."""
    parameters, count = list(task.model.parameters()), options.train_epoch
    optimizer: torch.optim.Optimizer
    if published.sgd:
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)
        scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, count))
    else:
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [60])
    noisy = Device(options.weight_bits, options.cell_bits, options.train_var, options.train_var)
    generator = torch.Generator().manual_seed(options.seed)
    precision = published.precision
    injected = noise_injection(task, optimizer, noisy, generator=generator) if options.train_var else nullcontext()
    quantized = nullcontext() if precision is None else precision.attached(task.model)
    with quantized, injected:
        for epoch in epochs(task, optimizer, count=count, scheduler=scheduler):
            if options.verbose:
                note(f"epoch {epoch + 1}: test accuracy {clean_score(task):.4f}")


def _quantize(task: Task, precision: Precision) -> None:
    """Put the weights where training saw them: on the grid."""
    formats, theta = precision.resolve(task.model), task.theta()
    for entry in task.layout.entries:
        grid = formats[entry.name.rpartition(".")[0]].weights
        if grid is not None:
            view = theta[entry.offset : entry.offset + entry.size].view(entry.shape)
            view.copy_(grid.quantize(view))
    task.layout.assign(task.model, theta)


@contextmanager
def _activations(precision: Precision | None, model: nn.Module) -> Iterator[None]:
    """Activations quantized as in training; what a chip's weights have become stays as it is."""
    if precision is None:
        yield
        return
    with Precision(activations=precision.activations, straight_through=True).attached(model):
        yield


def _method(network: Network, cells: Cells, options: Options) -> Spend:
    method = options.method.replace("-", " ")
    scores = Scores(network, options.images, max(1, BATCH // options.div), options.seed)
    if method in ("magnitude", "random", "first derivative", *POLICIES):
        return spend(method, cells, scores, "ggn_sampled", None)
    examples = sum(len(y) for _, y in network.task.batches("train"))
    scores.images = options.images or examples
    return by_weight(cells, published_scores(method, scores.of("backprop"), cells, options.alpha, examples))


def published_scores(method: str, curvature: Flat, cells: Cells, alpha: float | None, examples: int) -> Tensor:
    """What `by_weight` takes for a published method: curvatures (P,), or an order of the weights (P,), best first.

    SM: curvature first, magnitude where it is equal; with `alpha`, the published sum alpha H + |w|, where H is summed
    over the examples and both are for weights scaled to at most 1. second: H alone. saliency (SL): H |w|^alpha, alpha
    2 if None, compared by logarithms, so that no power underflows.
    """
    scaled = curvature.double() * cells.scale.double().square() * examples
    relative = cells.relative.double()
    if method == "SM":
        return curvature if alpha is None else rank(alpha * scaled + relative)
    if method == "second":
        return rank(scaled)
    power = 2.0 if alpha is None else alpha
    least = torch.finfo(torch.float64).min
    return rank((scaled.log() + power * relative.log()).nan_to_num(nan=least, neginf=least))

"""Small networks in float64, and slow obvious twins of everything the package computes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from weightbank.layout import everything
from weightbank.task import Task

DOUBLE = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def classes(*shape: int, count: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(0, count, shape, generator=seeded(seed))


def randomized(model: nn.Module, seed: int = 5) -> nn.Module:
    """Float64 weights and statistics of a size that makes predictions neither sure nor equal; training mode."""
    generator = seeded(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE) * (1.5 / fan**0.5))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator, dtype=DOUBLE))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator, dtype=DOUBLE) + 0.5)
    return model.train()


class Residual(nn.Module):
    """A strided stem, two residual blocks, one with a projected skip, and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.inner = nn.Conv2d(2, 2, 3, padding=1)
        self.wide = nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.skip = nn.Conv2d(2, 4, 1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.inner(x))
        x = F.relu(self.wide(x)) + self.skip(x)
        return self.head(self.pool(x).flatten(1))


class TinyTransformer(nn.Module):
    """Embedding, one encoder layer, and an output layer tied to the embedding; (N, T) tokens to (N, T, C)."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True)
        self.output = nn.Linear(4, 4)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.encoder(self.embedding(tokens)))


class SharedLinear(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(self.linear(x).relu())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.output = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.lstm(x)[0][:, -1])


def flattened(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def channels_second(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.movedim(-1, 1), target)


def mlp() -> nn.Module:
    return randomized(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)))


def conv() -> nn.Module:
    """Strides, paddings, dilation, groups, odd sizes, BatchNorm, max-pooling; (N, 2, 9, 7) to (N, 3)."""
    return randomized(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, (2, 1), dilation=(2, 1), bias=False),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(3, 2, 2, stride=2, output_padding=1),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(24, 3),
        )
    )


def task_of(model: nn.Module, x: Tensor, y: Tensor, loss=F.cross_entropy, *, batch_size: int = 4, **more) -> Task:
    cut = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(y), batch_size)]
    return Task("toy", model, loss, cut, cut, **more)


def mlp_task(**more) -> Task:
    return task_of(mlp(), numbers(11, 4), classes(11), **more)


def conv_task(**more) -> Task:
    return task_of(conv(), numbers(6, 2, 9, 7), classes(6), **more)


def residual_task(**more) -> Task:
    return task_of(randomized(Residual()), numbers(5, 1, 9, 8), classes(5), **more)


def transformer_task(loss=flattened, **more) -> Task:
    return task_of(randomized(TinyTransformer()), classes(3, 3, count=4), classes(3, 3, count=4), loss, **more)


def norm_task(**more) -> Task:
    model = randomized(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)))
    return task_of(model, numbers(5, 4), classes(5), **more)


def recurrent_task(**more) -> Task:
    return task_of(randomized(Recurrent()), numbers(3, 4, 2), classes(3), **more)


def frozen_task(**more) -> Task:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return task_of(model, numbers(7, 4), classes(7), where=everything, **more)


TASKS = {
    "mlp": mlp_task,
    "conv": conv_task,
    "residual": residual_task,
    "transformer": transformer_task,
    "layer norm": norm_task,
    "lstm": recurrent_task,
    "frozen": frozen_task,
}


def whole(task: Task) -> tuple[Tensor, Tensor]:
    pairs = list(task.batches("train"))
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def outputs_jacobian(task: Task) -> Tensor:
    """d output / dθ for the whole training data, shape (numbers of output, P), one backward pass each."""
    x, _ = whole(task)
    theta = task.theta().requires_grad_()
    output = task.predict(theta, x).reshape(-1)
    rows = [torch.autograd.grad(number, theta, retain_graph=True)[0] for number in output]
    return torch.stack(rows)


def softmax_ggn(task: Task) -> Tensor:
    """diag(Jᵀ H J) by loops over positions and pairs of classes, classes last in the output."""
    x, _ = whole(task)
    output = task.predict(task.theta(), x).detach()
    p = output.reshape(-1, output.shape[-1]).softmax(-1)
    jacobian = outputs_jacobian(task).view(*p.shape, -1)
    diagonal = torch.zeros(task.layout.size, dtype=DOUBLE)
    for position in range(len(p)):
        for a in range(p.shape[1]):
            for b in range(p.shape[1]):
                h = p[position, a] * (float(a == b) - p[position, b])
                diagonal += h * jacobian[position, a] * jacobian[position, b]
    return diagonal / len(p)


def hessian_diagonal(task: Task) -> Tensor:
    """The diagonal of the whole Hessian of the mean loss over the whole training data, by two backward passes."""
    x, y = whole(task)
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(lambda theta: task.loss(task.predict(theta, x), y), task.theta())
    return hessian.diagonal()

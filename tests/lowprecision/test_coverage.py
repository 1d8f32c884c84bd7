import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightbank.formats import BlockFloatingPoint, FixedPoint
from weightbank.lowprecision import Precision, exempt
from weightbank.zoo import preresnet20, vgg16

WHOLE = BlockFloatingPoint(8)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        y = F.relu(x + y)
        return F.log_softmax(self.head(y.mean((2, 3))), 1)


X = torch.randn(2, 3, 4, 4)


def test_functions_and_sums_are_listed_as_full_precision() -> None:
    model = Mixed()
    with Precision.swalp().attached(model) as attached:
        found = attached.report(X)
    assert [(r.module, r.operation) for r in found.quantized] == [("act", "ReLU")]
    assert [r.operation for r in found.full] == [
        "Conv2d", "BatchNorm2d", "function sum", "function relu", "Linear", "function log_softmax",
    ]  # fmt: skip
    assert all(format is None for format in found.weights.values())  # no optimizer is attached


def test_functional_covers_them() -> None:
    model = Mixed()
    with Precision.swalp().attached(model, functional=True) as attached:
        attached.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        found = attached.report(X)
    assert [r.operation for r in found.quantized] == ["ReLU", "function sum", "function relu"]
    assert [r.operation for r in found.full] == ["Conv2d", "BatchNorm2d", "Linear", "function log_softmax"]
    assert all(format is not None for format in found.weights.values())


def test_the_report_prints_what_is_where() -> None:
    model = Mixed()
    with Precision.swalp(rules=(exempt(nn.BatchNorm2d),)).attached(model) as attached:
        attached.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        text = str(attached.report(X))
    assert "results quantized: 1" in text
    assert "ReLU (activations BlockFloatingPoint(8), errors BlockFloatingPoint(8)): act" in text
    assert "function sum: (the model)" in text
    assert "weight tensors quantized: 4 of 6" in text
    assert "full precision: norm.weight, norm.bias" in text


def test_reporting_changes_nothing() -> None:
    model = Mixed()
    before = copy.deepcopy(model.state_dict())
    with Precision.swalp().attached(model) as attached:
        state = torch.get_rng_state()
        attached.report(X)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_vgg16_and_preresnet20_by_their_counts() -> None:
    images = torch.randn(1, 3, 32, 32)
    for model, quantized, sums in ((vgg16(), 15, 0), (preresnet20(), 19, 9)):
        with Precision(activations=WHOLE, errors=WHOLE).attached(model) as attached:
            found = attached.report(images)
        assert len(found.quantized) == quantized
        assert sum(r.operation == "function sum" for r in found.full) == sums


def test_the_inside_of_transformer_layers_is_listed_as_it_is_quantized() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    caught: list[Tensor] = []
    model.layers[0].dropout.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    coarse = FixedPoint(8, 2)
    with Precision(activations=coarse).attached(model, functional=True) as attached:
        report = attached.report(torch.randn(2, 5, 8))
        model(torch.randn(2, 5, 8))
    relus = [result for result in report.quantized if result.operation == "function relu"]
    assert [result.module for result in relus] == ["layers.0", "layers.1"]
    assert torch.equal(caught[0], coarse.quantize(caught[0]))  # the relu's result, which goes into this dropout

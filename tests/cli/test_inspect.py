import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from weightbank.cim import Cells, Device, WriteVerify
from weightbank.cli.console import Commands
from weightbank.cli.inspect import inspect
from weightbank.cli.inspecting import inspected
from weightbank.cli.inspecting_time import times_of
from weightbank.cli.needs import needs_of
from weightbank.distributions.packed import pack
from weightbank.errors import CorruptError, DataError, LayoutError, StoreError
from weightbank.formats import format_of
from weightbank.layout import Layout
from weightbank.lowprecision import Precision
from weightbank.paging import Pool
from weightbank.posterior import plan
from weightbank.store.arrays import ArrayFile, ArrayWriter, save_arrays
from weightbank.task import Task
from weightbank.zoo import build, mlp

OWN = """
import torch
from torch import nn
import weightbank as wb

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight
        self.frozen = nn.Linear(4, 5)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        x = self.drop(self.norm(self.first(x))).mean((2, 3))
        return self.frozen(self.tied(self.head(x)))

def net():
    return Net()

def task():
    x, y = torch.linspace(-1, 1, 40 * 192).view(40, 3, 8, 8), torch.arange(40) % 5
    return wb.Task("own", Net(), nn.functional.cross_entropy, (x, y), (x[:10], y[:10]), batch_size=16)

def number():
    return 3
"""


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run `weightbank inspect ...` in a directory with a user's own model in `own_net.py`."""
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text(OWN)
    app = typer.Typer(cls=Commands)
    app.command()(inspect)
    app.callback()(lambda: None)
    return lambda *arguments: CliRunner().invoke(app, ["inspect", *arguments])


def test_rows_are_those_of_a_plan_and_of_the_formats() -> None:
    layout = Layout.of(mlp(64, 64, 10))
    for row in needs_of(layout)["posterior"]["formats"]:
        each = plan(layout, iterates=1, format=row["format"]).bytes_per_iterate
        assert row["row_bytes"] == format_of(row["format"]).row_bytes(4810)
        assert row["bytes_per_iterate"] == each
        assert row["rows_per_gb"] * each <= 10**9 < (row["rows_per_gb"] + 1) * each


def test_cells_and_pulses_are_those_of_the_device() -> None:
    model = mlp(8, 64, 10)
    found, device = needs_of(Layout.of(model))["noisy_device"], Device()
    layout = Layout.of(model)
    cells = Cells.of(layout, device, layout.ravel(model))
    assert found["weights_on_device"] == cells.count
    assert found["cells"] == 8 * cells.count
    loop = WriteVerify.matching(device)
    generator = torch.Generator().manual_seed(0)
    first = 0.1 * torch.randn(found["cells"], generator=generator)
    counted = loop.run(first, 0.1, generator=generator).pulses.double()
    stderr = float(counted.std()) * math.sqrt(len(counted))
    assert found["pulses_all_verified"] == pytest.approx(float(counted.sum()), abs=4 * stderr)


@pytest.mark.parametrize("packed", [False, True])
def test_training_state_is_what_an_optimizer_holds(packed: bool) -> None:
    model = build("cnn_digits")
    precision = Precision.swalp(8, packed=packed)
    with precision.attached(model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        model(torch.linspace(-1, 1, 256).view(4, 1, 8, 8)).sum().backward()
        optimizer.step()
        held = attached.nbytes
    row = needs_of(Layout.of(model))["training"]["state"][packed]
    assert row["state"] == ("packed" if packed else "simulated")
    assert (row["weights_bytes"], row["momentum_bytes"]) == (held["weights"], held["state"])
    assert row["all_bytes"] == sum(held.values())


def test_pool_bytes_are_those_of_a_pool_that_just_holds_it() -> None:
    model = build("cnn_digits")
    layout = Layout.of(model)
    found = needs_of(layout, model)["pool"]
    assert found["positions"] == layout.size
    for row in found["formats"]:
        assert Pool(layout.size, dtype=row["format"]).nbytes == row["bytes"]


def test_a_zoo_network_is_looked_at_without_its_numbers(looked: Callable[..., Any]) -> None:
    found = json.loads(looked("resnet18_cifar10", "--json").stdout)
    assert found["what"] == "model"
    assert found["model"]["weights"] == 11_173_962
    assert found["model"]["batch_norm_layers"] == 20
    assert "time" not in found


def test_what_matters_of_a_users_own_model_is_said(looked: Callable[..., Any]) -> None:
    found = json.loads(looked("own_net.py:net", "--json").stdout)
    model = found["model"]
    own = 4 * 3 * 9 + 4 + 4 + 4 + 16
    assert model["weights"] == own
    assert model["frozen_weights"] == 25
    assert (model["tied_names"], model["dropout_layers"], model["batch_norm_layers"]) == (1, 1, 1)
    assert model["buffers"] == 3
    assert model["buffer_bytes"] == 2 * 4 * 4 + 8
    assert found["pool"]["beside_bytes"] == 4 * 25 + 2 * 4 * 4 + 8
    assert len(model["notes"]) == 4
    assert "time" not in found
    text = looked("own_net.py:net").stdout
    assert "frozen weights" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_passes_over_a_batch_of_given_data_are_timed(looked: Callable[..., Any]) -> None:
    found = json.loads(looked("mlp", "--data", "digits", "-b", "16", "--json").stdout)["time"]
    assert found["batch"] == 16
    assert 0 < found["forward_seconds"] < 10
    assert found["training_epoch_seconds"] == pytest.approx(found["forward_and_backward_seconds"] * 1297 / 16)
    assert found["test_pass_of_30_draws_seconds"] == pytest.approx(30 * found["test_pass_seconds"])
    own = json.loads(looked("own_net.py:task", "--json").stdout)["time"]
    assert (own["batch"], own["training_examples"], own["test_examples"]) == (16, 40, 10)


def test_a_timed_model_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = (torch.linspace(-1, 1, 64).view(8, 8), torch.arange(8) % 2)
    times_of(Task("t", model, nn.functional.cross_entropy, data, data), 4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_packed_weights_and_their_true_bits(looked: Callable[..., Any]) -> None:
    model = mlp(64, 64, 10)
    layout = Layout.of(model)
    packed = pack(layout.ravel(model), layout, "bfp4", "packed.safetensors")
    found = json.loads(looked("packed.safetensors", "--json").stdout)
    assert (found["what"], found["written_by"]) == ("weights in few bits", "train")
    assert (found["weights"], found["layout"]) == (layout.size, layout.fingerprint)
    assert found["formats"] == ["BlockFloatingPoint(4, block=32)"]
    assert found["bits_per_weight"] == pytest.approx(8 * packed.nbytes / layout.size)
    assert found["file_bytes"] == Path("packed.safetensors").stat().st_size
    assert found["noisy_device"]["cells"] == 8 * (64 * 64 + 640)


def test_a_pool_says_who_is_in_it(looked: Callable[..., Any]) -> None:
    Pool(5000, dtype="bfp8").save("pool.safetensors")
    found = json.loads(looked("pool.safetensors", "--json").stdout)
    assert (found["positions"], found["tenants"], found["packing"]) == (5000, [], 0)
    assert found["format"] == "BlockFloatingPoint(8, block=64)"


def test_files_of_the_other_commands_are_known(cli: Callable[..., Any]) -> None:
    cli("posterior", "run", "--path", "run", "-e", "1", "--samples", "0")
    cli("posterior", "export", "run", "-o", "law.safetensors")
    cli("cim", "curvature", "mlp", "-e", "1", "-o", "net.safetensors")
    cli("cim", "rank", "net.safetensors", "-o", "order.safetensors")
    cli("cim", "plan", "net.safetensors", "--max-drop", "0.9", "--passes", "2", "-o", "plan.safetensors")
    law = inspected("law.safetensors")
    assert (law["what"], law["rows"], law["weights"]) == ("a posterior's law", 13, 4810)
    network = inspected("net.safetensors")
    assert (network["scores"], network["weights"], network["made_of"]["model"]) == (["ggn_sampled"], 4810, "mlp")
    assert network["layout"] == law["layout"]
    assert inspected("order.safetensors")["written_by"] == "cim rank"
    assert inspected("plan.safetensors")["device"]["weight_bits"] == "8"
    assert inspected("run")["rows"] == 13
    checkpoint = inspected("run/checkpoint.safetensors")
    assert checkpoint["what"] == "the checkpoint of a training run"


def test_tensors_are_not_read(looked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(64, 64, 10)
    save_arrays("state.safetensors", model.state_dict())
    Pool(5000).save("pool.safetensors")
    monkeypatch.setattr(ArrayFile, "read", lambda *_: pytest.fail("a tensor was read"))
    found = inspected("state.safetensors")
    assert (found["what"], found["weights"], found["layout"]) == ("tensors", 4810, None)
    assert found["posterior"]["formats"][0]["row_bytes"] == 4 * 4810
    assert inspected("pool.safetensors")["positions"] == 5000


def test_a_file_that_lies_about_its_size_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "law.safetensors"
    layout = [{"name": "w", "shape": [2**40], "offset": 0, "dtype": "float32"}]
    for marker, arrays in (
        ("weightbank gaussian 1", {"mean": (torch.float32, (4,))}),
        ("weightbank packed 1", {"w:codes": (torch.uint8, (4,)), "w:scales": (torch.int8, (1,))}),
    ):
        about = {"weightbank": marker, "layout": json.dumps(layout), "formats": '{"w": "bfp8"}'}
        with ArrayWriter(path, arrays, about):
            pass
        with pytest.raises(CorruptError):
            inspected(str(path))


@pytest.mark.parametrize("manifest", ["{}", "[]", "x", '{"tenants": 3}', "[" * 100_000])
def test_a_garbled_description_is_a_clear_error(tmp_path: Path, manifest: str) -> None:
    path = tmp_path / "pool.safetensors"
    save_arrays(path, {"owner": torch.zeros(4)}, {"weightbank": "weightbank pool", "manifest": manifest})
    with pytest.raises(CorruptError, match="what it says of itself cannot be read"):
        inspected(str(path))


def test_what_is_neither_is_refused_with_what_there_is(looked: Callable[..., Any]) -> None:
    with pytest.raises(LayoutError, match="resnet18_cifar10"):
        inspected("no_such_model")
    with pytest.raises(StoreError, match="no such file"):
        inspected("none.safetensors")
    with pytest.raises(DataError, match="returned a int"):
        inspected("own_net.py:number")
    with pytest.raises(DataError, match="wanted FILE:FUNCTION"):
        inspected("own_net.py:nobody")
    with pytest.raises(DataError, match="weightbank report"):
        inspected("own_net.py")
    save_arrays("state.safetensors", {"w": torch.zeros(3)})
    with pytest.raises(DataError, match="leave out --data"):
        inspected("state.safetensors", "digits")
    done = looked("no_such_model")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no model is called")

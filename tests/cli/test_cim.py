import json
import math
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from weightbank.cim import (
    MENU,
    Cells,
    Device,
    Drift,
    Plan,
    Retraining,
    Sweep,
    WriteVerify,
    by_cell,
    each_chip,
    rank,
    read_first,
    sweep,
    write_verify,
)
from weightbank.cli import cim
from weightbank.cli.cim_device import device_of, process_of
from weightbank.cli.cim_methods import METHODS
from weightbank.cli.cim_network import Network, Wanted, prepared
from weightbank.cli.cim_published import NETWORKS, published_scores
from weightbank.curvature import backprop, ggn, ggn_sampled
from weightbank.errors import CorruptError, DataError, LayoutError
from weightbank.store.arrays import load_arrays
from weightbank.zoo import build

QUICK = ("--sigma", "0.5", "--chips", "20")

OWN = """
import torch
import weightbank as wb
from weightbank.data import digits

def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(54, 10),
    )

def task():
    data = digits()
    return wb.Task("mine", model(), torch.nn.functional.cross_entropy, data.train, data.test, batch_size=100)

def frozen():
    net = model()
    net[0].weight.requires_grad_(False)
    return net

def restless():
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, training=True)
    return torch.nn.Sequential(model(), Noisy())

def biases():
    net = model()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    return net

def nothing():
    return 3
"""


@pytest.fixture
def run(cli: Callable[..., Any]) -> Callable[..., Any]:
    """Run `weightbank cim ...` in an empty directory; it must exit with `code`."""

    def command(*arguments: str, code: int = 0) -> Any:
        result = cli("cim", *arguments)
        assert result.exit_code == code, result.stderr
        return result

    return command


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network on digits, trained for 8 epochs, with two curvatures."""
    path = tmp_path_factory.mktemp("kept") / "digits.safetensors"
    arguments = ["curvature", "mlp", "-e", "8", "--which", "ggn_sampled", "--which", "backprop", "-o", str(path)]
    assert CliRunner().invoke(cim.app, arguments).exit_code == 0
    return path


@pytest.fixture(scope="module")
def network(kept: Path) -> Network:
    return prepared(Wanted(str(kept)))


@pytest.fixture
def own(tmp_path: Path, run: Callable[..., Any]) -> Path:
    (tmp_path / "mynet.py").write_text(OWN)
    sys.modules.pop("mynet", None)
    return tmp_path


def test_curvature_keeps_scores_with_the_weights_they_are_of(network: Network, kept: Path) -> None:
    task = network.task
    assert set(network.scores) == {"ggn_sampled", "backprop"}
    torch.testing.assert_close(
        network.scores["ggn_sampled"], ggn_sampled(task, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(network.scores["backprop"], backprop(task))
    arrays, about = load_arrays(kept)
    assert json.loads(about["network"])["fingerprint"] == task.layout.fingerprint
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(arrays[f"state.{name}"], tensor)


def test_a_file_gets_more_scores_and_keeps_the_others(run: Callable[..., Any], kept: Path, network: Network) -> None:
    found = json.loads(run("curvature", str(kept), "--which", "ggn", "-o", "more.safetensors", "--json").stdout)
    more = prepared(Wanted("more.safetensors"))
    assert set(more.scores) == {"ggn_sampled", "backprop", "ggn"}
    exact = ggn(network.task)
    torch.testing.assert_close(more.scores["ggn"], exact)
    assert found["curvatures"][0]["sum"] == pytest.approx(float(exact.double().sum()))
    assert found["weights"] == 4_810
    # The smallest share of the weights that holds nine tenths of the sum, by counting.
    ordered = exact.double().sort(descending=True).values
    count = next(n for n in range(1, 4_811) if float(ordered[:n].sum()) >= 0.9 * float(ordered.sum()))
    assert found["curvatures"][0]["holding"] == count / 4_810


def test_rank_shows_what_a_fraction_picks_in_each_tensor(run: Callable[..., Any], kept: Path, network: Network) -> None:
    arguments = ("rank", str(kept), "--fraction", "0.1", "--sigma", "0.3", "-o", "order.safetensors")
    found = json.loads(run(*arguments, "--json").stdout)
    assert (found["on_device"], found["digital"]) == (4_736, 74)
    tensors = {row["tensor"]: row for row in found["tensors"]}
    assert list(tensors) == ["1.weight", "3.weight"]
    h, cells = network.scores["ggn_sampled"], Cells.of(network.task, Device(sigma=0.3))
    last = network.task.layout.slice("3.weight")
    assert tensors["3.weight"]["of_curvature"] == pytest.approx(float(h[last].sum() / h.sum()), rel=1e-5)
    worth = h * cells.scale**2
    assert tensors["3.weight"]["of_worth"] == pytest.approx(float(worth[last].sum() / worth.sum()), rel=1e-5)
    for part in ("of_weights", "of_worth"):
        assert sum(row[part] for row in tensors.values()) == pytest.approx(1)
    for part in ("weights_chosen", "cells_chosen"):
        chosen = sum(row[part] * row["weights"] for row in tensors.values())
        assert chosen == pytest.approx(0.1 * 4_736, abs=1)
    order = load_arrays("order.safetensors")[0]["order"]
    assert sorted(order.tolist()) == list(range(4_810))
    among = cells.on_device.nonzero()[:, 0]
    assert int(order[0]) == int(among[worth[among].argmax()])
    assert "3.weight" in run(*arguments).stdout


def test_a_sweep_is_that_of_the_library_and_leaves_three_files(
    run: Callable[..., Any], kept: Path, network: Network, tmp_path: Path
) -> None:
    methods = ("--method", "cells", "--method", "read-first", "--budget", "0", "--budget", "0.05", "--budget", "1")
    found = json.loads(run("sweep", str(kept), *QUICK, *methods, "-o", "out", "--json").stdout)
    cells = Cells.of(network.task, Device(sigma=0.5))
    h = network.scores["ggn_sampled"]
    ways = {"cells": by_cell(cells, h), "read first": read_first(cells, h, tolerances=MENU[1:])}
    expected = sweep(network.task, ways, (0, 0.05, 1), chips=20, stderr=0.002)
    assert found["rows"] == expected.to_dict()["rows"]
    assert Sweep.load("out/sweep.json").to_dict() == expected.to_dict()
    assert (tmp_path / "out" / "sweep.csv").read_text() == expected.csv()
    words = {"".join(node.itertext()) for node in ET.parse("out/sweep.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"cells", "read first", "mlp, digits"} <= words
    text = run("sweep", str(kept), *QUICK, *methods, "-o", "out").stdout
    assert f"{100 * expected.rows[2].accuracy.mean:.1f}±" in text
    assert "in out/sweep.svg" in text


def test_a_sweep_of_all_methods_ranks_them_and_fits_100_columns(run: Callable[..., Any], kept: Path) -> None:
    text = run("sweep", str(kept), *QUICK, "--budget", "0.03", "--budget", "1").stdout
    rows = {line[:18].strip(): line[18:].split() for line in text.splitlines() if "±" in line and "%" not in line}
    accuracy = {name: float(rows[name][0].split("±")[0]) for name in METHODS}  # at 3 % of the cycles
    assert accuracy["random"] < accuracy["published"] + 2 < accuracy["cells"] < accuracy["graded"]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "each cell is read" in text


def test_in_situ_retraining_is_swept_and_drawn_if_it_is_named(
    run: Callable[..., Any], kept: Path, network: Network, tmp_path: Path
) -> None:
    budgets = ("--budget", "0.01", "--budget", "0.1")
    arguments = ["sweep", str(kept), *QUICK, *budgets, "--method", "in-situ", "--method", "cells", "-o", "out"]
    settings = ["--retraining", "lr=0.02, chips=3,steps=80"]
    found = json.loads(run(*arguments, *settings, "--json").stdout)
    cells = Cells.of(network.task, Device(sigma=0.5))
    method = Retraining(network.task, cells, learning_rate=0.02, chips=3, steps=80)
    rows = sweep(network.task, {"in situ": method}, (0.01, 0.1)).to_dict()["rows"]
    assert [row for row in found["rows"] if row["method"] == "in situ"] == rows
    words = {"".join(node.itertext()) for node in ET.parse("out/sweep.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert "in situ" in words
    assert "In situ: 3 chips of their own" in run(*arguments, *settings).stdout
    wrong = run(*arguments, "--retraining", "rate=1", code=1).stderr
    assert "--retraining rate=1: wanted some of lr=" in wrong
    assert "add --method 'in situ'" in run("sweep", str(kept), "--method", "cells", *settings, code=1).stderr


def test_methods_that_a_network_does_not_allow_are_left_out_unless_named(run: Callable[..., Any], own: Path) -> None:
    result = run("sweep", "mynet:task", "--sigma", "pcm_joshi", "--budget", "0.1", "--chips", "5", "--json")
    methods = {row["method"] for row in json.loads(result.stdout)["rows"]}
    assert methods == set(METHODS) - {"graded", "read first", "compensate"}
    assert "without 'graded'" in result.stderr
    result = run("sweep", "mynet:task", "--sigma", "pcm_joshi", "--method", "graded", code=1)
    assert "name a process" in result.stderr


def test_a_plan_is_that_of_the_library_and_serves_later_chips(
    run: Callable[..., Any], kept: Path, network: Network
) -> None:
    options = ("--sigma", "0.5", "--max-drop", "0.03", "--policy", "cells", "--step", "0.01")
    found = json.loads(run("plan", str(kept), *options, "-o", "plan.safetensors", "--json").stdout)
    h = network.scores["ggn_sampled"]
    expected = write_verify(network.task, Device(sigma=0.5), h, max_drop=0.03, step=0.01, policy=by_cell)
    plan = Plan.load("plan.safetensors")
    assert found["write_cycles"] == plan.write_cycles == expected.write_cycles
    assert torch.equal(plan.rule.grades, expected.rule.grades)
    assert found["met"]
    assert len(found["history"]) == len(expected.history)
    again = json.loads(run("evaluate", "plan.safetensors", str(kept), "--chips", "6", "--json").stdout)
    chips = each_chip(network.task, plan.apply(network.task), 6, generator=torch.Generator().manual_seed(1))
    assert again["chips"]["values"] == list(chips.values)
    assert again["within"] == sum(value >= plan.clean - 0.03 for value in chips.values) / 6
    assert "later chips" in run("evaluate", "plan.safetensors", str(kept), "--chips", "3").stdout


def test_a_plan_that_cannot_be_met_is_exit_code_1(run: Callable[..., Any], kept: Path) -> None:
    options = ("--sigma", "2", "--verified-sigma", "1.5", "--max-drop", "0.001", "--passes", "2", "--step", "0.25")
    assert "NOT within" in run("plan", str(kept), *options, code=1).stdout


def test_a_simulated_loop_can_be_asked_for(run: Callable[..., Any], kept: Path) -> None:
    options = ("--tolerance", "0.2", "--pulse", "incremental", "--budget", "1", "--method", "cells")
    found = json.loads(run("sweep", str(kept), *QUICK, *options, "--json").stdout)
    assert found["process"]["tolerance"] == 0.2
    expected = WriteVerify(pulse="incremental", tolerance=0.2).outcome(0.5).reads
    assert found["rows"][0]["reads"] == pytest.approx(expected, rel=1e-6)


def test_a_model_of_ones_own_goes_the_whole_way(run: Callable[..., Any], own: Path) -> None:
    found = json.loads(run("curvature", "mynet:task", "-e", "3", "-o", "mine.safetensors", "--json").stdout)
    assert found["weights"] == 54 + 6 + 12 + 550  # BatchNorm and a stride: an ordinary module
    assert found["score"] > 0.5
    named = ("mynet:task", "--pretrained", "mine.safetensors")
    run("plan", *named, "--sigma", "0.3", "--max-drop", "0.05", "--step", "0.1", "--passes", "2", "-o", "p.safetensors")
    later = json.loads(run("evaluate", "p.safetensors", *named, "--chips", "2", "--json").stdout)
    assert later["clean"] == pytest.approx(found["score"])
    result = run("rank", "mine.safetensors", code=1)  # a file may not say which code to run
    assert "mynet:task --pretrained mine.safetensors" in result.stderr


def test_what_is_not_on_the_device_is_said(run: Callable[..., Any], own: Path) -> None:
    result = run("rank", "mynet:frozen", "--json")
    assert "54 of 622 weights are frozen" in result.stderr
    assert [row["tensor"] for row in json.loads(result.stdout)["tensors"]] == ["4.weight"]
    assert "analog=everything" in run("rank", "mynet:biases", code=1).stderr
    everything = run("rank", "mynet:biases", "--memory", "analog=everything", "--json")
    assert json.loads(everything.stdout)["digital"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rank", "resnet"], "no model is called 'resnet'"),
        (["rank", "mlp", "--data", "cats"], "names no data"),
        (["rank", "lenet_mnist"], "does not take images of 1x8x8"),
        (["rank", "nowhere.safetensors"], "no such file"),
        (["rank", "--scores", "best"], "no curvature is called 'best'"),
        (["rank", "--sigma", "wide"], "published fit"),
        (["rank", "--sigma", "0.01"], "verifying would make it worse"),
        (["rank", "--memory", "wet"], "not a property of a memory"),
        (["rank", "--memory", "read_noise=loud"], "'loud' is no number"),
        (["rank", "--memory", "drift_spread=0.1"], "drift=SECONDS"),
        (["rank", "--weight-bits", "2", "--cell-bits", "4"], "cell_bits <= weight_bits"),
        (["curvature", "--which", "third"], "no curvature is called 'third'"),
        (["sweep", "--method", "best"], "no method is called 'best'"),
        (["plan", "--policy", "best"], "no policy is called 'best'"),
        (["plan", "--max-drop", "0"], "wanted a positive drop"),
        (["evaluate", "nowhere.safetensors", "mlp"], "no such file"),
        (["rank", "mlp", "--device", "cuda:77"], "use --device cpu"),
        (["rank", "nofile:task"], "with FILE.py in this directory"),
        (["rank", "mynet:absent"], "absent"),
        (["rank", "mynet:nothing"], "returned a int"),
        (["rank", "mynet:task", "--data", "digits"], "leave out --data"),
        (["rank", "mynet:restless"], "random"),
        (["run", "--model", "VGG"], "models are MLP3"),
        (["run", "--method", "best"], "methods are SM"),
        (["run", "--pretrained", "True"], "pretrained/saved_B_1.pt: no such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Callable[..., Any], own: Path, arguments: list[str], words: str) -> None:
    if arguments[0] in ("rank", "sweep", "plan") and not any(":" in part or "." in part for part in arguments[1:2]):
        arguments = [*arguments, "--epochs", "0"]
    result = run(*arguments, code=1)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not list(own.glob("*.safetensors"))


def test_foreign_and_damaged_files_are_refused(run: Callable[..., Any], kept: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CorruptError):
        prepared(Wanted("text.safetensors"))
    whole = kept.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CorruptError):
        prepared(Wanted("cut.safetensors"))
    (tmp_path / "other.safetensors").write_bytes(whole.replace(b'\\"model\\": \\"mlp\\"', b'\\"model\\": \\"cow\\"'))
    with pytest.raises(LayoutError, match="'cow'"):
        prepared(Wanted("other.safetensors"))
    (tmp_path / "odd.safetensors").write_bytes(whole.replace(b"\\", b"/"))
    with pytest.raises(CorruptError):
        prepared(Wanted("odd.safetensors"))
    run("rank", "mlp", "-e", "0", "-o", "order.safetensors")
    with pytest.raises(CorruptError, match="weightbank order 1"):
        prepared(Wanted("order.safetensors"))
    with pytest.raises(DataError, match="leave out --pretrained and --epochs"):
        prepared(Wanted(str(kept), epochs=3))
    with pytest.raises(LayoutError, match="do not fit"):
        prepared(Wanted("small_cnn", pretrained=kept))


def test_memories_are_built_from_text() -> None:
    plain = device_of("0.3", "0.03", 8, 2)
    assert plain == Device(8, 2, 0.3, 0.03)
    text = (
        "quantized, pairs,scale=channel,analog=everything,read_noise=0.1,stuck_low=0.01,drift=86400,drift_exponent=0.06"
    )
    found = device_of("pcm_joshi", "0.01", 6, 3, text)
    drift = Drift(86400, exponent=0.06)
    assert found == Device(
        6, 3, "pcm_joshi", 0.01, "channel", "everything", True, True, stuck_low=0.01, read_noise=0.1, drift=drift
    )
    phase = device_of("0.1", "0.03", 8, 1, "drift=100,drift_exponent=pcm_aihwkit,drift_compensated").drift
    assert phase == Drift(100, exponent="pcm_aihwkit", compensated=True)
    assert process_of(None, "redraw") is None
    assert process_of(0.1, "incremental") == WriteVerify(pulse="incremental", tolerance=0.1)


def test_a_table_of_measurements_can_be_the_error(run: Callable[..., Any], kept: Path, tmp_path: Path) -> None:
    lines = ["target,actual", *(f"{target},{target + error}" for target in (0, 5, 10) for error in (-0.5, 0.5, 1.0))]
    (tmp_path / "cells.csv").write_text("\n".join(lines))
    found = json.loads(run("rank", str(kept), "--sigma", "cells.csv", "--verified-sigma", "0.001", "--json").stdout)
    assert found["device"]["sigma"]["targets"] == [0.0, 0.5, 1.0]


RUN = ("run", "--train-epoch", "4", "--noise-epoch", "3", "--dev-var", "0.3", "--images", "200")


def test_the_published_options_are_understood_with_hyphens_and_underscores(run: Callable[..., Any]) -> None:
    hyphens = run(*RUN, "--model", "MLP3", "--mask-p", "0.1", "--write-var", "0.05", "--method", "SM", "--json")
    underscores = (
        "run --train_epoch 4 --noise_epoch 3 --dev_var 0.3 --images 200 --model MLP3 --mask_p 0.1 --write_var 0.05"
    )
    others = "--method SM --train_var 0.0 --div 1 --pretrained False --use_mask True --verbose False --json"
    assert run(*underscores.split(), *others.split()).stdout == hyphens.stdout
    found = json.loads(hyphens.stdout)
    assert [row["write_cycles"] for row in found["results"]] == [0.0, 1.0, pytest.approx(0.1, abs=1e-4)]
    assert found["options"]["write_var"] == 0.05
    assert found["on_device"] == 26_432
    without = run(*RUN, "--model", "MLP3", "--use-mask", "False")
    assert "by SM" not in without.stdout


@pytest.mark.parametrize(
    "method", ["second", "saliency", "SL", "magnitude", "random", "first-derivative", "read first"]
)
def test_every_method_can_be_run(run: Callable[..., Any], tmp_path: Path, method: str) -> None:
    torch.manual_seed(0)
    torch.save(build("mlp3_mnist").state_dict(), tmp_path / "weights.pt")
    arguments = ("--model", "MLP3", "--pretrained", "weights.pt", "--method", method, "--mask-p", "0.1")
    found = json.loads(run(*RUN, *arguments, "--json").stdout)["results"]
    assert found[2]["write_cycles"] == pytest.approx(0.1, abs=1e-3)


def test_published_weights_are_read_and_scored(run: Callable[..., Any], tmp_path: Path) -> None:
    """As the published program saves them: wrapped layers, each with a dummy for second derivatives."""
    torch.manual_seed(1)
    model = build("lenet_mnist")
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight":
            state[f"{layer}.weightS"] = torch.ones_like(tensor)
        state[f"{layer}.op.{leaf}"] = tensor
    (tmp_path / "pretrained").mkdir()
    torch.save(state, tmp_path / "pretrained" / "saved_B_7.pt")
    arguments = ("--model", "LeNet", "--pretrained", "True", "--header", "7", "--dev-var", "0", "--write-var", "0")
    found = json.loads(
        run("run", *arguments, "--noise-epoch", "2", "--use-mask", "False", "-o", "n.safetensors", "--json").stdout
    )
    assert found["results"][0]["mean"] == pytest.approx(found["clean"])
    assert found["results"][0]["std"] == 0
    arrays = load_arrays("n.safetensors")[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(arrays[f"state.{name}"], tensor)


def test_quantized_networks_are_programmed_from_their_grid(run: Callable[..., Any]) -> None:
    arguments = ("--model", "QLeNet", "--dev-var", "0", "--write-var", "0", "--use-mask", "False", "--verbose", "True")
    result = run(*RUN, *arguments, "-o", "q.safetensors", "--json")
    found = json.loads(result.stdout)
    assert "epoch 4: test accuracy" in result.stderr
    assert found["results"][0]["mean"] == pytest.approx(found["clean"])  # no noise: a chip is the network
    assert found["clean"] > 0.3
    arrays = load_arrays("q.safetensors")[0]
    for name in ("conv1.weight", "fc1.weight", "fc3.bias"):
        tensor = arrays[f"state.{name}"]
        step = 2.0 ** (math.floor(math.log2(float(tensor.abs().max()))) - 3)  # 5 bits
        assert torch.equal((tensor / step).round() * step, tensor)
        assert len(tensor.unique()) <= 32


def test_training_with_noise_is_another_network(run: Callable[..., Any]) -> None:
    for name, noise in (("a", "0"), ("b", "0.2")):
        run(*RUN, "--model", "MLP3", "--train-var", noise, "--use-mask", "False", "-o", f"{name}.safetensors")
    a, b = (load_arrays(f"{name}.safetensors")[0]["state.fc1.weight"] for name in "ab")
    assert not torch.equal(a, b)


def test_every_published_network_can_be_built_and_quantized() -> None:
    for name, published in NETWORKS.items():
        with torch.device("meta"):
            model = build(published.model)
        precision = published.precision
        assert (precision is not None) == name.startswith("Q")
        if precision is None:
            continue
        formats = precision.resolve(model)
        norms = [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert all(formats[key].weights is None for key in norms)
        assert sum(part.weights is not None for part in formats.values()) > 3


def test_published_scores_are_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    from weightbank.layout import Layout

    layout = Layout.of(model)
    theta = torch.randn(layout.size, generator=generator)
    h = torch.rand(layout.size, generator=generator)
    h[:4] = 0
    cells = Cells.of(layout, Device(), theta)
    scaled, relative = h.double() * cells.scale.double() ** 2 * 50, cells.relative.double()
    assert torch.equal(published_scores("SM", h, cells, None, 50), h)
    assert torch.equal(published_scores("second", h, cells, None, 50), rank(scaled))
    assert torch.equal(published_scores("SM", h, cells, 3.0, 50), rank(3 * scaled + relative))
    positive = (scaled > 0) & (relative > 0)
    order = published_scores("saliency", h, cells, None, 50)
    plain = rank(scaled * relative**2)
    assert torch.equal(order[: int(positive.sum())], plain[: int(positive.sum())])
    # With the published default alpha every power underflows in floating point; here it still tells weights apart.
    steep = published_scores("saliency", h, cells, 1e6, 50)
    assert int(steep[0]) == int((relative * (scaled > 0)).argmax())


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_sweep_does(run: Callable[..., Any], tmp_path: Path, kept: Path) -> None:
    arguments = ["sweep", str(kept), "--sigma", "0.5", "--chips", "400", "--method", "cells", "--method", "published"]
    code = "from weightbank.cli import cim; cim.app()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments, "-o", "parts"]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as child:
        while not (tmp_path / "parts" / "sweep.json").exists():
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate()
    assert child.returncode == 130
    assert errors.endswith("stopped; the same command goes on from parts\n")
    run(*arguments, "-o", "whole")
    run(*arguments, "-o", "parts")
    assert (tmp_path / "parts" / "sweep.json").read_bytes() == (tmp_path / "whole" / "sweep.json").read_bytes()

import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weightbank.cli.pages_experiments import Experiment
from weightbank.cli.pages_figures import DRAWINGS, figure_of
from weightbank.cli.pages_networks import Network, digit_networks, network_of, read_table
from weightbank.cli.pages_running import RUNS
from weightbank.data.spec import READERS
from weightbank.errors import DataError, LayoutError
from weightbank.zoo import MODELS, PAGE_NETWORKS

QUICK = ("--first", "2", "--counts", "2", "--sizes", "100", "--penalties", "1", "--steps", "4", "--rounds", "1")
QUICK = (*QUICK, "--formats", "bfp4")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained weights of the first two digit networks."""
    place = tmp_path_factory.mktemp("kept")
    for network in digit_networks(2):
        network.member(place)
    return place


@pytest.fixture
def pages(cli: Callable[..., Any], tmp_path: Path, kept: Path) -> Callable[..., Any]:
    """Run the command in a directory that has the weights of the first two digit networks."""
    shutil.copytree(kept, tmp_path / "networks")
    return partial(cli, "pages", "run")


def test_every_experiment_can_be_run_and_drawn():
    assert list(RUNS) == list(DRAWINGS) == [experiment.value for experiment in Experiment]


@pytest.mark.parametrize("experiment", RUNS)
def test_rows_are_the_same_in_json_and_csv_and_are_drawn(pages, experiment, tmp_path):
    result = pages(experiment, *QUICK, "--csv", "out/rows.csv", "--figure", "rows.svg", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["experiment"] == experiment
    assert found["networks"] == ["digits-0", "digits-1"]
    assert found["rows"]
    with (tmp_path / "out" / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [list(row) for row in found["rows"]]
    for written, row in zip(rows, found["rows"], strict=True):
        for name, value in row.items():
            number = isinstance(value, float)
            assert (float(written[name]) if number else written[name]) == (value if number else str(value))
    text = (tmp_path / "rows.svg").read_text()
    assert text.startswith("<?xml")
    assert "digits-1" in text or experiment in ("matching", "memory")


def test_people_get_percent_and_no_more_than_a_hundred_columns(pages):
    lines = pages("networks", *QUICK).stdout.strip().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:5] == ["networks", "network", "alone", "placed", "tuned"]
    assert all(line.count("%") == 3 for line in lines[1:])


def test_trained_weights_are_kept_and_found_again(pages, tmp_path):
    first = json.loads(pages("importance", *QUICK, "--cache", "kept", "--json").stdout)
    assert first["networks"] == ["digits-0", "digits-1"]
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert set(times) == {"digits-0.safetensors", "digits-1.safetensors"}
    assert json.loads(pages("importance", *QUICK, "--cache", "kept", "--json").stdout) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == times


def test_kept_weights_of_other_settings_are_refused(pages, tmp_path):
    (tmp_path / "nets.toml").write_text('digits-0 = { model = "mlp_digits", data = "digits", epochs = 2 }')
    result = pages("importance", *QUICK, "--networks", "nets.toml")
    assert result.exit_code == 1
    assert "is of another network" in result.stderr
    assert "epochs=8" in result.stderr


def npz(path: Path, name: str, **arrays: Sequence[float]) -> None:
    size = PAGE_NETWORKS[name].size
    theta = np.random.default_rng(0).normal(size=size).astype(np.float32) / 10
    np.savez(path, flat_weight=theta, **{key: np.asarray(value, np.float32) for key, value in arrays.items()})


def test_a_network_without_data_is_held_at_published_weights(pages, tmp_path):
    npz(tmp_path / "svhn.npz", "svhn", flat_fisher=np.ones(PAGE_NETWORKS["svhn"].size))
    (tmp_path / "nets.toml").write_text(
        'digits = { model = "mlp_digits", data = "digits", epochs = 2 }\n'
        'svhn = { model = "pages_svhn", weights = "svhn.npz", importance = "flat_fisher" }\n'
    )
    result = pages("networks", "--networks", str(tmp_path / "nets.toml"), "--steps", "5", "--json")
    assert result.exit_code == 0, result.stderr
    digits, svhn = json.loads(result.stdout)["rows"]
    assert (svhn["held"], svhn["weights"], svhn["alone"], svhn["tuned"]) == (True, 45_490, None, None)
    assert 0 < digits["tuned"] <= 1
    assert digits["packing"] == (45_490 + digits["weights"]) / 45_500


def test_places_in_a_table_are_relative_to_it_but_those_of_the_hub_are_not(tmp_path):
    line = {"model": "pages_mnist", "data": "mnist:data", "weights": "w.npz", "rate": 1}
    network = network_of("a", line, tmp_path)
    assert (network.data, network.weights, network.rate) == (f"mnist:{tmp_path}/data", f"{tmp_path}/w.npz", 1.0)
    assert network_of("a", {"model": "m", "data": "hub:ylecun/mnist"}, tmp_path).data == "hub:ylecun/mnist"
    assert network_of("a", {"model": "m", "data": "digits"}, tmp_path).data == "digits"
    assert network_of("a", {"model": "m", "data": "audio:/abs"}, tmp_path).data == "audio:/abs"


BAD_TABLES = {
    "no TOML": ("a = {", "is no TOML"),
    "bytes": (b"\xff", "is no TOML"),
    "no model": ('a = { data = "digits" }', "'a' has no model"),
    "no table": ("a = 1", "'a' has no model"),
    "unknown": ('a = { model = "m", data = "digits", size = 1 }', "unknown settings size"),
    "another type": ('a = { model = "m", data = "digits", epochs = "many" }', "epochs='many'; wanted"),
    "true is no number": ('a = { model = "m", data = "digits", epochs = true }', "epochs=True; wanted"),
    "nothing": ('a = { model = "m" }', "neither data nor weights"),
    "foreign weights": (
        'a = { model = "mlp_digits", weights = "w.npz" }',
        "of page networks, and 'mlp_digits' is none",
    ),
    "too long": ("#" * (1 << 20) + "\n", "more than 1,048,576 bytes"),
    "a way out of the folder of kept weights": ('"../a" = { model = "m", data = "digits" }', "wanted letters"),
}


@pytest.mark.parametrize(("text", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "nets.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_an_absent_table_is_named(pages):
    result = pages("networks", "--networks", "none.toml")
    assert result.exit_code == 1
    assert "none.toml: no such file" in result.stderr


@pytest.mark.parametrize("counts", ["", "3,", "0", "a", "-1", "nan"])
def test_numbers_that_are_none_are_refused(pages, counts):
    result = pages("penalty", "--penalties", counts)
    assert result.exit_code == 2
    assert "wanted positive numbers" in result.stderr


def test_a_figure_of_another_kind_is_refused_before_anything_is_run(pages, tmp_path):
    result = pages("networks", "--figure", "rows.pdf", "--csv", "rows.csv")
    assert result.exit_code == 1
    assert "ends in .svg or .png" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["networks"]


def test_rows_without_numbers_are_not_drawn():
    with pytest.raises(DataError, match="have no number to draw"):
        figure_of("networks", [{"networks": 1, "network": "a", "tuned": None}])


def test_importance_needs_data_or_an_array(tmp_path):
    npz(tmp_path / "w.npz", "mnist")
    with pytest.raises(DataError, match="importance='fisher' needs data"):
        Network("a", "pages_mnist", weights=str(tmp_path / "w.npz"), importance="fisher").member(tmp_path)
    with pytest.raises(LayoutError, match="no array 'flat_fisher_00'"):
        Network("a", "pages_mnist", weights=str(tmp_path / "w.npz"), importance="flat_fisher").member(tmp_path)
    with pytest.raises(DataError, match="importance='flat_fisher' needs weights"):
        Network("a", "mlp_digits", "digits", importance="flat_fisher", epochs=1).member(tmp_path)
    equal = Network("a", "pages_mnist", weights=str(tmp_path / "w.npz")).member(tmp_path)
    assert torch.equal(equal.importance, torch.full((45_706,), 0.01))
    assert equal.held


DOCUMENT = (Path(__file__).parents[2] / "docs" / "pages.md").read_text()


def test_the_documented_tables_are_tables_of_networks_that_exist(tmp_path):
    text = "\n".join(re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL))
    (tmp_path / "nets.toml").write_text(text)
    networks = read_table(tmp_path / "nets.toml")
    assert [network.name for network in networks] == ["mnist", "fashion", "cifar10", "signs", "obs", "spoken"]
    for network in networks:
        assert network.model in MODELS
        assert network.data is None or network.data.partition(":")[0] in READERS


def test_the_documented_sizes_are_those_of_the_networks():
    found = dict(re.findall(r"^\| `(\w+)`.*? \| ([\d,]+) \|", DOCUMENT, re.MULTILINE))
    assert {name: int(size.replace(",", "")) for name, size in found.items()} == {
        name: network.size for name, network in PAGE_NETWORKS.items() if name != "svhn"
    }


def test_every_experiment_is_documented():
    assert [name for name in RUNS if f"| `{name}` |" not in DOCUMENT] == []


def test_digit_networks_need_no_files_and_differ(kept):
    one, other = (network.member(kept) for network in digit_networks(2))
    assert not one.held
    assert one.alone > 0.9
    assert not torch.equal(one.theta, other.theta)

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import weightbank as wb
from weightbank.paging import Pool
from weightbank.store.arrays import load_arrays


@pytest.fixture
def pages(cli: Callable[..., Any]) -> Callable[..., Any]:
    """Run `weightbank pages ...` in an empty directory."""
    return partial(cli, "pages")


@pytest.fixture
def two(pages: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with pool.safetensors: two networks of 4,810 weights in 7,000 positions."""
    assert pages("create", "pool.safetensors", "--capacity", "28 kB").exit_code == 0
    for seed, name in enumerate(["mlp", "second"]):
        done = pages(
            "add", "pool.safetensors", "mlp", "--name", name, "--seed", str(seed), "-e", "2", "--images", "100"
        )
        assert done.exit_code == 0, done.stderr
    return pages


def test_a_pool_is_created_once(pages: Callable[..., Any]) -> None:
    document = json.loads(pages("create", "pool.safetensors", "-c", "28 kB", "--dtype", "bfp8", "--json").stdout)
    assert document["positions"] == 28_000 // 65 * 64
    assert document["bytes"] == 28_000 // 65 * 65
    again = pages("create", "pool.safetensors", "-c", "7000")
    assert again.exit_code == 1
    assert "is there already" in again.stderr
    assert json.loads(pages("create", "other", "-c", "7000", "--json").stdout)["positions"] == 7_000


def test_networks_are_added_listed_tuned_evaluated_materialised_and_removed(two: Callable[..., Any]) -> None:
    listed = json.loads(two("list", "pool.safetensors", "--json").stdout)
    assert listed["weights"] == 9_620
    assert [row["name"] for row in listed["tenants"]] == ["mlp", "second"]
    assert listed["notes"]["second"] == {"model": "mlp", "data": "digits", "seed": 1}
    assert "views" in two("list", "pool.safetensors").stdout
    before = json.loads(two("evaluate", "pool.safetensors", "--json").stdout)["tenants"]

    tuned = two("tune", "pool.safetensors", "--steps", "60", "--lr", "0.003", "--log", "logged", "--json")
    assert tuned.exit_code == 0
    assert json.loads(tuned.stdout)["committed"] is True
    logged = [json.loads(line) for line in Path("logged/log.jsonl").read_text().splitlines()]
    assert [[line["step"], line["scores"]] for line in logged] == json.loads(tuned.stdout)["history"]
    after = json.loads(two("evaluate", "pool.safetensors", "--json").stdout)["tenants"]
    mean = [sum(found[name]["average"]["accuracy"]["mean"] for name in found) / 2 for found in (before, after)]
    assert mean[1] > mean[0]
    assert "second" not in two("evaluate", "pool.safetensors", "mlp").stdout

    pool = Pool.open("pool.safetensors")
    two("materialise", "pool.safetensors", "mlp", "-o", "network.safetensors")
    state, _ = load_arrays("network.safetensors")
    assert all(torch.equal(state[key], value) for key, value in pool.materialise("mlp").items())
    assert two("remove", "pool.safetensors", "mlp").exit_code == 0
    left = Pool.open("pool.safetensors")
    assert list(left) == ["second"]
    assert torch.equal(left["second"].mean(), pool["second"].mean())
    gone = two("remove", "pool.safetensors", "mlp")
    assert gone.exit_code == 1
    assert "no tenant 'mlp' here; there are: second" in gone.stderr


def test_a_tuning_that_harms_leaves_the_file_and_exits_with_one(two: Callable[..., Any]) -> None:
    two("tune", "pool.safetensors", "--steps", "40", "--lr", "0.003")
    before = Path("pool.safetensors").read_bytes()
    done = two("tune", "pool.safetensors", "--steps", "10", "--lr", "3")
    assert done.exit_code == 1
    assert "rolled back" in done.stdout or "error" in done.stderr
    assert Path("pool.safetensors").read_bytes() == before


def test_a_pool_is_converted_by_example_or_to_nearest(two: Callable[..., Any]) -> None:
    two("tune", "pool.safetensors", "--steps", "60", "--lr", "0.003")
    before = Path("pool.safetensors").read_bytes()
    options = ("--dtype", "bfp4", "-o", "small.safetensors", "--json")
    done = json.loads(two("convert", "pool.safetensors", "--steps", "100", "--tolerance", "0.1", *options).stdout)
    assert done["committed"] is True
    for name in ("mlp", "second"):
        assert done["moved"][name]["after"] < done["moved"][name]["nearest"]
    small = Pool.open("small.safetensors")
    assert small.generation.owner.nbytes == done["bytes_after"] < done["bytes_before"] / 7
    blind = json.loads(two("convert", "pool.safetensors", "--nearest", *options).stdout)
    assert (blind["steps"], blind["moved"]) == (0, {})
    values = Pool.open("pool.safetensors").generation.owner.values()
    assert torch.equal(Pool.open("small.safetensors").generation.owner.values(), small.format.quantize(values))
    one = two("convert", "pool.safetensors", "--steps", "0", "--only", "mlp", *options, "--tolerance", "1")
    assert set(json.loads(one.stdout)["moved"]) == {"mlp"}
    refused = two("convert", "pool.safetensors", "--dtype", "bfp4", "--steps", "0", "--tolerance", "-1")
    assert refused.exit_code == 1
    assert "not committed" in refused.stdout
    assert Path("pool.safetensors").read_bytes() == before
    done = two("convert", "pool.safetensors", "--dtype", "bf16", "--steps", "4")
    assert done.exit_code == 0
    assert "committed" in done.stdout
    assert repr(Pool.open("pool.safetensors").format) == "Native('bfloat16')"


def test_what_others_save_meanwhile_is_edited_too_and_not_lost(
    two: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else saves between this command's reading and writing."""
    save = Pool.save
    meanwhile: list[str] = []

    def late(self: Pool, path: Path, **options: Any) -> None:
        if meanwhile:
            other = Pool.open("pool.safetensors")
            other.remove(meanwhile.pop())
            save(other, "pool.safetensors")
        save(self, path, **options)

    monkeypatch.setattr(Pool, "save", late)
    meanwhile.append("second")
    assert two("add", "pool.safetensors", "mlp", "--name", "third", "-e", "1", "--images", "100").exit_code == 0
    assert list(Pool.open("pool.safetensors")) == ["mlp", "third"]
    meanwhile.append("third")
    tuned = two("tune", "pool.safetensors", "--steps", "2", "--only", "mlp")
    assert tuned.exit_code == 1
    assert "pool.safetensors: was replaced while it was tuned; the tuned pool is pool.tuned.safetensors" in tuned.stderr
    assert list(Pool.open("pool.safetensors")) == ["mlp"]
    assert list(Pool.open("pool.tuned.safetensors")) == ["mlp", "third"]
    again = two("tune", "pool.safetensors", "--steps", "2")
    assert again.exit_code == 0, again.stderr
    meanwhile.append("mlp")
    gone = two("remove", "pool.safetensors", "mlp")
    assert gone.exit_code == 1
    assert "no tenant 'mlp'" in gone.stderr


def test_one_name_is_tuned_while_others_are_held(two: Callable[..., Any]) -> None:
    done = two("tune", "pool.safetensors", "--steps", "20", "--only", "mlp", "--tolerance", "1", "--json")
    assert list(json.loads(done.stdout)["after"]) == ["mlp"]


def test_code_of_a_tenant_is_called_only_when_named_again(
    pages: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_network.py").write_text(
        "import torch, weightbank as wb\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    data = wb.data.digits()\n"
        "    model = wb.zoo.mlp(64, 12, 10)\n"
        "    return wb.Task('own', model, torch.nn.functional.cross_entropy, data.train, data.test)\n"
    )
    pages("create", "pool", "-c", "2000")
    added = pages("add", "pool", "own_network:make", "--images", "50")
    assert added.exit_code == 0, added.stderr
    assert list(Pool.open("pool")) == ["own_network"]
    monkeypatch.delitem(sys.modules, "own_network")
    refused = pages("evaluate", "pool")
    assert refused.exit_code == 1
    assert "no file may call code" in refused.stderr
    assert "own_network" not in sys.modules
    assert pages("evaluate", "pool", "--model", "own_network=own_network:make").exit_code == 0
    assert "wanted NAME=FILE:FUNCTION" in pages("evaluate", "pool", "--model", "own_network").stderr


def test_a_tenant_without_notes_says_what_to_pass(pages: Callable[..., Any]) -> None:
    x = torch.zeros(4, 3)
    task = wb.Task("line", torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (x, x[:, :1]), (x, x[:, :1]))
    pool = Pool(16)
    pool.add(task, importance=torch.ones(4))
    pool.save("pool")
    assert "--model line=FILE:FUNCTION" in pages("tune", "pool").stderr


def test_a_figure_shows_every_network(two: Callable[..., Any]) -> None:
    pytest.importorskip("matplotlib")
    found = json.loads(two("plot", "pool.safetensors", "-o", "pool.svg", "--bins", "50", "--json").stdout)["profile"]
    pool = Pool.open("pool.safetensors")
    assert set(found) == {"networks", "mlp", "second"}
    assert sum(found["networks"]) / 50 == pytest.approx(9_620 / 7_000, rel=1e-3)
    tenant = pool.generation.tenants["mlp"]
    assert tenant.importance is not None
    assert sum(found["mlp"]) / 50 == pytest.approx(float(tenant.importance.float().sum()) / 7_000, rel=1e-3)
    text = Path("pool.svg").read_text()
    assert "mlp: importance" in text
    assert "networks at a position" in text
    empty = two("create", "empty", "-c", "10")
    assert empty.exit_code == 0
    assert "nobody is in this pool yet" in two("plot", "empty", "-o", "empty.svg").stderr
    assert "nobody is in this pool yet" in two("evaluate", "empty").stdout


def test_files_that_are_no_pools_are_an_error_in_one_line(pages: Callable[..., Any]) -> None:
    Path("other").write_bytes(b"something")
    for command in (["list", "other"], ["evaluate", "none"], ["remove", "other", "x"]):
        done = pages(*command)
        assert done.exit_code == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1

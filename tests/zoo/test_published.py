import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightbank.errors import CorruptError, LayoutError, NonFiniteError, StoreError
from weightbank.zoo import build, lenet, load_published, mlp3, mlp4, preresnet20

FORMATS = ["pt", "safetensors"]


def draw(seed: int, name: str = "mlp3_mnist") -> nn.Module:
    """A network with weights, and statistics that training would have moved."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(name)
        for key, value in model.state_dict().items():
            if key.rpartition(".")[2] in ("running_mean", "running_var"):
                value.uniform_(0.5, 2)
    return model


def wrap(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state the published wrappers would save of the same network: op, and a dummy of each weight before it."""
    state = OrderedDict()
    for name, value in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and value.ndim > 1:
            state[f"{layer}.weightS"] = torch.ones_like(value)
        state[f"{layer}.op.{leaf}"] = value.clone()
    return state


def write(state: dict[str, torch.Tensor], folder: Path, suffix: str) -> Path:
    path = folder / f"saved_B_1.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["mlp4_mnist", "lenet_mnist", "preresnet20_cifar10", "resnet18_cifar10"])
def test_a_published_file_makes_the_network_it_was_saved_from(name, suffix, tmp_path):
    saved, model = draw(1, name), draw(2, name)
    assert load_published(model, write(wrap(saved), tmp_path, suffix)) is model
    assert_same(model, saved)


def test_wrapped_layers_give_the_same_outputs(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self, op: nn.Module) -> None:
            super().__init__()
            self.weightS = nn.Parameter(torch.ones_like(op.weight))
            self.op = op

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.op(x)

    layers = [Wrapped(nn.Linear(784, 32)), nn.ReLU(), Wrapped(nn.Linear(32, 32)), nn.ReLU(), Wrapped(nn.Linear(32, 10))]
    published = nn.Sequential(nn.Flatten(), *layers)
    path = tmp_path / "saved.pt"
    torch.save(published.state_dict(), path)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_published(mlp3(), path)(x), published(x))


def test_strange_names_are_read_in_their_order(tmp_path):
    saved, model = draw(1, "preresnet20_cifar10"), draw(2, "preresnet20_cifar10")
    strange = OrderedDict(
        (f"z{-number}.{name.rpartition('.')[2]}", value) for number, (name, value) in enumerate(wrap(saved).items())
    )
    load_published(model, write(strange, tmp_path, "pt"))
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, saved.state_dict()[name]), name


def test_strange_names_without_an_order_are_refused(tmp_path):
    state = {f"z{name}": value for name, value in wrap(draw(1)).items()}
    with pytest.raises(LayoutError, match=r"6 are missing \(fc1.bias, fc1.weight, fc2.bias, ...\).*zfc1.bias"):
        load_published(mlp3(), write(state, tmp_path, "safetensors"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_without_batch_counters_will_do(suffix, tmp_path):
    saved, model = draw(1, "preresnet20_cifar10"), draw(2, "preresnet20_cifar10")
    state = {name: value for name, value in wrap(saved).items() if not name.endswith("num_batches_tracked")}
    load_published(model, write(state, tmp_path, suffix))
    assert_same(model, saved)


def test_numbers_take_the_dtype_of_the_model(tmp_path):
    saved, model = draw(1), draw(2).double()
    load_published(model, write(wrap(saved), tmp_path, "pt"))
    assert_same(model, saved.double())
    assert {value.dtype for value in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("suffix", FORMATS)
def test_another_number_of_classes_is_answered_with_both_shapes(suffix, tmp_path):
    model = draw(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = wrap(mlp3(classes=7))
    with pytest.raises(LayoutError, match=r"'fc3.op.weight' is 7x32 where the model's 'fc3.weight' is 10x32"):
        load_published(model, write(state, tmp_path, suffix))
    assert_same(model, draw(2))


def test_another_network_is_answered_with_both_numbers_of_tensors(tmp_path):
    with pytest.raises(LayoutError, match=r"10 tensors \(conv1.op.weight, .*\) where the model has 8 \(fc1.weight, "):
        load_published(mlp4(), write(wrap(lenet()), tmp_path, "pt"))


def test_as_many_tensors_in_another_order_are_refused(tmp_path):
    state = wrap(draw(1))
    backwards = OrderedDict((f"z.{name}", state[name]) for name in reversed(state))
    with pytest.raises(LayoutError, match=r"'z.fc3.op.bias' stands where the model has 'fc1.weight'"):
        load_published(mlp3(), write(backwards, tmp_path, "pt"))


def test_names_that_become_one_are_refused(tmp_path):
    state = wrap(draw(1))
    state["fc1.weight"] = state["fc1.op.weight"].clone()
    with pytest.raises(LayoutError, match="7 tensors"):
        load_published(mlp3(), write(state, tmp_path, "pt"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_leaves_the_model_as_it_was(bad, suffix, tmp_path):
    state = wrap(draw(1))
    state["fc3.op.bias"][3] = bad
    model = draw(2)
    with pytest.raises(NonFiniteError, match=r"'fc3.op.bias' has NaN or infinite"):
        load_published(model, write(state, tmp_path, suffix))
    assert_same(model, draw(2))


def test_integers_for_weights_are_refused(tmp_path):
    state = wrap(draw(1))
    state["fc2.op.weight"] = torch.zeros(32, 32, dtype=torch.int64)
    with pytest.raises(LayoutError, match=r"'fc2.op.weight' holds torch.int64 numbers; the model's are torch.float32"):
        load_published(mlp3(), write(state, tmp_path, "pt"))


def test_a_model_without_memory_is_refused(tmp_path):
    with torch.device("meta"):
        model = mlp3()
    with pytest.raises(LayoutError, match="meta device"):
        load_published(model, write(wrap(draw(1)), tmp_path, "pt"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"saved_B_9.pt: no such file"):
        load_published(mlp3(), tmp_path / "saved_B_9.pt")


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_code_in_a_file_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    state = {**wrap(draw(1)), "fc9.weight": Payload(mark)}
    path = tmp_path / "evil.pt"
    torch.save(state, path)
    with pytest.raises(CorruptError, match=r"it calls .*Path"):
        load_published(mlp3(), path)
    assert not mark.exists()


def test_an_object_that_only_takes_memory_is_not_built(tmp_path):
    path = tmp_path / "large.pt"
    torch.save({"fc1.weight": bytearray(8)}, path)  # torch itself would build it, whatever its size
    with pytest.raises(CorruptError, match="bytearray"):
        load_published(mlp3(), path)


def test_compressed_members_are_refused(tmp_path):
    path = write(wrap(draw(1)), tmp_path, "pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    with pytest.raises(CorruptError, match="compressed"):
        load_published(mlp3(), packed)


def test_a_program_beyond_all_need_is_refused(tmp_path):
    path = tmp_path / "long.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("long/data.pkl", b"(" * (2**20 + 1))
    with pytest.raises(CorruptError, match="not a state_dict"):
        load_published(mlp3(), path)


@pytest.mark.parametrize(("content", "said"), [([torch.ones(2)], "holds a list"), ({"epoch": 3}, "'epoch' is a int")])
def test_what_is_no_state_dict_is_refused(content, said, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(CorruptError, match=said):
        load_published(mlp3(), path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_anywhere_is_corrupt(suffix, tmp_path):
    whole = write(wrap(draw(1)), tmp_path, suffix).read_bytes()
    model, cut = draw(2), tmp_path / f"cut.{suffix}"
    for length in [*range(0, 64, 7), *range(64, len(whole) - 1, len(whole) // 23)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(CorruptError):
            load_published(model, cut)
    assert_same(model, draw(2))


def test_a_garbled_program_never_escapes_as_another_error(tmp_path):
    path = write(wrap(draw(1)), tmp_path, "pt")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    program = members["saved_B_1/data.pkl"]
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(150):
        garbled = bytearray(program)
        garbled[int(torch.randint(len(program), (), generator=generator))] ^= 1 << int(
            torch.randint(8, (), generator=generator)
        )
        with zipfile.ZipFile(path, "w") as archive:  # with checksums that fit
            for name, content in {**members, "saved_B_1/data.pkl": bytes(garbled)}.items():
                archive.writestr(name, content)
        try:
            load_published(draw(2), path)
        except (CorruptError, LayoutError, NonFiniteError):
            refused += 1
    assert refused > 75  # the others name a dummy, a key or an offset otherwise


def test_the_largest_program_leaves_room(tmp_path):
    path = write(wrap(preresnet20()), tmp_path, "pt")
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("saved_B_1/data.pkl").file_size
        tensors = len(torch.load(path, weights_only=True))
    assert 850 * size / tensors < 2**20 / 4

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from weightbank.distributions import WeightDistribution
from weightbank.distributions.packed import PackedWeights, pack
from weightbank.errors import CorruptError, LayoutError, StoreError
from weightbank.evaluation import evaluate
from weightbank.formats import BlockFloatingPoint, ByDimensions
from weightbank.layout import Layout
from weightbank.store.arrays import save_arrays
from weightbank.task import Task
from weightbank.zoo import mlp

LAYOUT = Layout.of(nn.Linear(7, 5))
THETA = torch.linspace(-1, 2, LAYOUT.size)
SMALL = BlockFloatingPoint(6, block=ByDimensions())


def test_every_parameter_is_packed_in_its_own_blocks_with_its_true_bits(tmp_path: Path) -> None:
    wanted = torch.cat([SMALL.quantize(part).flatten() for part in LAYOUT.unravel(THETA).values()])
    in_memory = pack(THETA, LAYOUT, SMALL)
    on_disk = pack(THETA, LAYOUT, SMALL, tmp_path / "w.safetensors")
    for packed in (in_memory, on_disk):
        assert torch.equal(packed.mean(), wanted)
        assert packed.nbytes == (35 * 6 + 7) // 8 + 5 + (5 * 6 + 7) // 8 + 1
    header = 8 + int.from_bytes((tmp_path / "w.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "w.safetensors").stat().st_size == header + on_disk.nbytes


def test_stochastic_packing_draws_a_stream_per_parameter() -> None:
    layout = Layout.of(nn.Sequential(nn.Linear(64, 1, bias=False), nn.Linear(64, 1, bias=False)))
    theta = torch.rand(64, generator=torch.Generator().manual_seed(0)).repeat(2)
    first, again, other = (pack(theta, layout, "bfp4", rounding="stochastic", key=k).mean() for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:64], first[64:])


def test_formats_can_differ_by_parameter(tmp_path: Path) -> None:
    packed = pack(THETA, LAYOUT, {"weight": SMALL, "bias": torch.float32}, tmp_path / "w")
    assert torch.equal(packed.mean()[35:], THETA[35:])
    assert [repr(part.format) for part in packed.parts.values()] == [repr(SMALL), "Native('float32')"]
    with pytest.raises(LayoutError, match="bias"):
        pack(THETA, LAYOUT, {"weight": "bfp8"})


def test_packed_weights_are_a_law_that_evaluate_takes(tmp_path: Path) -> None:
    model = mlp(8, 16, 3)
    x, y = torch.randn(50, 8), torch.arange(50) % 3
    task = Task("t", model, F.cross_entropy, (x, y), (x, y))
    packed = pack(task.theta(), task.layout, "bfp8", tmp_path / "w")
    assert isinstance(packed, WeightDistribution)
    assert (packed.variance() == 0).all()
    assert torch.equal(packed.sample(3), packed.mean().expand(3, -1))
    assert [torch.equal(draw, packed.mean()) for draw in packed.draws(2)] == [True, True]
    assert evaluate(task, packed, samples=1).nll.mean == evaluate(task, packed.mean()).nll.mean


def test_saved_memory_and_file_are_the_same(tmp_path: Path) -> None:
    in_memory = pack(THETA, LAYOUT, SMALL)
    in_memory.save(tmp_path / "a")
    opened = PackedWeights.open(tmp_path / "a")
    assert opened.layout == LAYOUT
    assert torch.equal(opened.unpack(out=torch.empty(LAYOUT.size, dtype=torch.float64)).float(), in_memory.mean())
    arrays = load_file(tmp_path / "a")
    assert {name: array.dtype for name, array in arrays.items()} == {
        "weight:codes": torch.uint8, "weight:scales": torch.int8, "bias:codes": torch.uint8, "bias:scales": torch.int8,
    }  # fmt: skip


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0, 3))
    layout = Layout.of(model)
    assert torch.equal(pack(layout.ravel(model), layout, SMALL, tmp_path / "w").mean(), torch.tensor([1.5]))


def metadata(**changes: str) -> dict[str, str]:
    whole = {"weightbank": "weightbank packed 1", "layout": json.dumps(LAYOUT.describe())}
    whole["formats"] = json.dumps(dict.fromkeys(LAYOUT.names, repr(SMALL)))
    return {**whole, **changes}


def test_foreign_truncated_and_garbled_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    with pytest.raises(StoreError, match="no such file"):
        PackedWeights.open(file)
    save_file({"x": torch.ones(3)}, file)
    with pytest.raises(CorruptError, match="something else"):
        PackedWeights.open(file)
    pack(THETA, LAYOUT, SMALL, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(CorruptError, match="not a whole"):
        PackedWeights.open(file)
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(CorruptError, match="not a whole"):
        PackedWeights.open(file)

    arrays = {
        f"{name}:{part}": torch.zeros(1, dtype=torch.uint8) for name in LAYOUT.names for part in ("codes", "scales")
    }
    evil = {"formats": json.dumps(dict.fromkeys(LAYOUT.names, "__import__('os').system('true')"))}
    for changes, message in (
        (evil, "formats cannot be read"),
        ({"layout": "[]"}, "cannot be read"),
        ({"formats": "[1]"}, "cannot be read"),
    ):
        save_arrays(file, arrays, metadata(**changes))
        with pytest.raises(CorruptError, match=message):
            PackedWeights.open(file)
    save_arrays(file, {"weight:codes": torch.zeros(1, dtype=torch.uint8)}, metadata())
    with pytest.raises(CorruptError, match="arrays do not fit"):
        PackedWeights.open(file)


@pytest.mark.usefixtures("unchecked_types")
def test_no_changed_byte_gives_other_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    weights = pack(THETA, LAYOUT, SMALL, file).mean()
    whole, refused = file.read_bytes(), 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 7)]) + whole[place + 1 :])
        try:
            assert torch.equal(PackedWeights.open(file).mean(), weights)
        except CorruptError:
            refused += 1
    assert refused > 0.9 * len(whole)


def test_a_small_file_cannot_claim_a_huge_tensor(tmp_path: Path) -> None:
    described = [{"name": "weight", "shape": [2**40], "offset": 0, "dtype": "float32"}]
    arrays = {"weight:codes": torch.zeros(9, dtype=torch.uint8), "weight:scales": torch.zeros(1, dtype=torch.int8)}
    changes = {"layout": json.dumps(described), "formats": json.dumps({"weight": repr(SMALL)})}
    save_arrays(tmp_path / "w", arrays, metadata(**changes))
    with pytest.raises(CorruptError, match="1,099,511,627,776 weights"):
        PackedWeights.open(tmp_path / "w")


def test_codes_of_another_length_are_refused_when_read(tmp_path: Path) -> None:
    arrays = {f"{name}:codes": torch.zeros(40, dtype=torch.uint8) for name in LAYOUT.names}
    arrays |= {f"{name}:scales": torch.zeros(1, dtype=torch.int8) for name in LAYOUT.names}
    save_arrays(tmp_path / "w", arrays, metadata())
    with pytest.raises(CorruptError, match="'weight'.*needs 27 bytes"):
        PackedWeights.open(tmp_path / "w").mean()
    arrays["weight:codes"] = torch.zeros(40, dtype=torch.int16)
    save_arrays(tmp_path / "w", arrays, metadata())
    with pytest.raises(CorruptError, match="torch.int16"):
        PackedWeights.open(tmp_path / "w")

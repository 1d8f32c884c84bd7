import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from zlib_ng.zlib_ng import crc32

import pooled
from weightbank.errors import CapacityError, CorruptError, LayoutError, StoreError
from weightbank.paging import Pool, vectors
from weightbank.store.arrays import load_arrays, save_arrays


def models() -> dict[str, torch.nn.Module]:
    return {task.name: task.model for task in pooled.tasks()}


def mixed(dtype: str = "fp32") -> Pool:
    """A pool with extents, pages, exclusive tensors, buffers and notes."""
    one, two, conv = pooled.tasks()
    weights = pooled.importances()
    pool = Pool(5_632, dtype=dtype, reserve=512)
    pool.add(one, importance=weights["one"], exclusive=vectors, notes={"data": "digits"})
    pool.add(two, importance=weights["two"], placement="pages", page_size=100)
    pool.add(conv, importance=weights["conv"])
    return pool


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "bfp8", "bfp4"])
def test_a_pool_comes_back_as_it_was(tmp_path: Path, dtype: str, mapped: bool) -> None:
    pool = mixed(dtype)
    path = tmp_path / "new" / "pool.safetensors"
    pool.save(path)
    back = Pool.open(path, models(), mapped=mapped)
    assert pooled.same(pool, back)
    assert back.generation.number == pool.generation.number
    assert back.reserve == 512
    assert back.report().to_dict() == pool.report().to_dict()
    assert back.generation.tenants["one"].notes == {"data": "digits"}
    x = pooled.examples(50)[0]
    for name in pool:
        with pool.use(name) as here, back.use(name) as there:
            torch.testing.assert_close(here(x), there(x), rtol=1e-5, atol=1e-5)  # alignment may change sums
    assert [file.name for file in path.parent.iterdir()] == ["pool.safetensors"]
    back.remove("one")
    pool.remove("one")
    assert pooled.same(pool, back)
    pool.add(pooled.tasks()[0], importance=pooled.importances()["one"])
    back.add(pooled.tasks()[0], importance=pooled.importances()["one"])
    assert pooled.same(pool, back)


def test_the_file_is_the_owner_and_little_more(tmp_path: Path) -> None:
    pool = mixed()
    pool.save(tmp_path / "all")
    pool.save(tmp_path / "serving", importance=False)
    sizes = [(tmp_path / name).stat().st_size for name in ("all", "serving")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * pool.report().weights, abs=500)
    assert sizes[1] - pool.nbytes < 6_000  # layouts and tables as JSON
    served = Pool.open(tmp_path / "serving", models())
    assert pooled.same(pool, served)
    with pytest.raises(LayoutError, match="importance=True"):
        served.add(pooled.tasks()[0], name="more", importance=pooled.importances()["one"])


def test_a_mapped_pool_is_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    mixed().save(path)
    pool = Pool.open(path, models())
    start = pool.generation.owner.raw.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(number, 16) for number in line.split()[0].split("-"))
        if low <= start < high:
            assert line.endswith(str(path))
            break
    else:
        raise AssertionError("the owner is nowhere in the address space")


def test_a_model_may_be_on_the_meta_device_and_tenants_without_one_can_leave(tmp_path: Path) -> None:
    pool = mixed()
    pool.save(tmp_path / "pool")
    with torch.device("meta"):
        conv = pooled.tiny()
    back = Pool.open(tmp_path / "pool", {"conv": conv})
    x = pooled.examples(20)[0]
    with back.use("conv") as net, pool.use("conv") as own:
        torch.testing.assert_close(net(x), own(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(LayoutError, match="'one' was opened without its model"):
        back.use("one")
    model = models()["one"]
    state = back.materialise("one")
    assert set(state) == set(model.state_dict())
    back.attach({"one": model})
    with back.use("one") as net:
        assert net(x).shape == (20, 10)
    with pytest.raises(LayoutError, match="the model for 'two' has other weights"):
        back.attach({"two": model})
    with pytest.raises(LayoutError, match="a model came for 'nobody'"):
        Pool.open(tmp_path / "pool", {"nobody": model})


READER = """
import sys, json, torch
from weightbank.paging import Pool
from weightbank.zoo import mlp
pool = Pool.open(sys.argv[1], {"one": mlp(64, 24, 10)})
for line in sys.stdin:
    if line.strip() == "refresh":
        pool.refresh()
    with pool.use("one") as net:
        print(json.dumps([pool.generation.number, net(torch.ones(1, 64)).tolist()]), flush=True)
"""


def test_another_process_serves_the_mapped_file_and_takes_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    pool = pooled.filled()
    pool.save(path)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:

        def ask(line: str) -> tuple[int, torch.Tensor]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(line + "\n")
            child.stdin.flush()
            number, found = json.loads(child.stdout.readline())
            return number, torch.tensor(found)

        def own() -> tuple[int, torch.Tensor]:
            with pool.use("one") as net:
                return pool.generation.number, net(torch.ones(1, 64))

        first = own()
        number, found = ask("use")
        assert number == first[0]
        torch.testing.assert_close(found, first[1], rtol=1e-5, atol=1e-5)
        with pool.edit() as draft:
            draft.values.mul_(0.5)
        pool.save(path)
        number, found = ask("use")  # still what it has mapped
        assert number == first[0]
        torch.testing.assert_close(found, first[1], rtol=1e-5, atol=1e-5)
        number, found = ask("refresh")
        assert number == first[0] + 1
        torch.testing.assert_close(found, own()[1], rtol=1e-5, atol=1e-5)


def test_refreshing_takes_only_what_is_new_and_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="was not opened from a file"):
        pooled.filled().refresh()
    pooled.filled().save(tmp_path / "pool")
    pool = Pool.open(tmp_path / "pool", models())
    generation = pool.generation
    assert not pool.refresh()
    assert pool.generation is generation
    (tmp_path / "pool").write_bytes(b"rubbish")
    with pytest.raises(CorruptError):
        pool.refresh()
    assert pool.generation is generation


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    mixed().save(tmp_path / "pool")
    whole = (tmp_path / "pool").read_bytes()
    chance = random.Random(0)
    for place in [0, 7, 8, 9, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(60))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        (tmp_path / "bad").write_bytes(damaged)
        try:
            back = Pool.open(tmp_path / "bad")
        except StoreError:
            continue
        assert place < 8 + int.from_bytes(whole[:8], "little")  # white space or a name of no array: nothing was lost
        assert pooled.same(back, mixed())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, 3_000, -1, -5_000])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    mixed().save(tmp_path / "pool")
    whole = (tmp_path / "pool").read_bytes()
    (tmp_path / "pool").write_bytes(whole[:length])
    with pytest.raises(CorruptError):
        Pool.open(tmp_path / "pool")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        Pool.open(tmp_path / "none")
    save_arrays(tmp_path / "other", {"owner": torch.zeros(10)}, {"weightbank": "weightbank run"})
    with pytest.raises(CorruptError, match="but not one of a pool"):
        Pool.open(tmp_path / "other")
    save_arrays(tmp_path / "other", {"owner": torch.zeros(10)})
    with pytest.raises(CorruptError, match="but not one of a pool"):
        Pool.open(tmp_path / "other")


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """A pool's file with another manifest (and arrays), all checksums right: written by an enemy."""
    arrays, metadata = load_arrays(path)
    manifest = json.loads(metadata["manifest"])
    change(manifest, arrays)
    manifest["crc32"] = {
        name: f"{crc32(tensor.reshape(-1).view(torch.uint8).numpy()):08x}" if tensor.numel() else "00000000"
        for name, tensor in arrays.items()
    }
    text = json.dumps(manifest)
    save_arrays(path, arrays, {**metadata, "manifest": text, "crc32": f"{crc32(text.encode()):08x}"})


def extent(number: int, **values: int) -> Callable[[Any, Any], None]:
    def change(manifest: Any, arrays: Any) -> None:
        for name, value in values.items():
            manifest["tenants"][2]["extents"][number][["start", "position", "length", "exclusive"].index(name)] = value

    return change


def tenant(number: int, **values: Any) -> Callable[[Any, Any], None]:
    return lambda manifest, arrays: manifest["tenants"][number].update(values)


def whole(**values: Any) -> Callable[[Any, Any], None]:
    return lambda manifest, arrays: manifest.update(values)


def overlapping(manifest: Any, arrays: Any) -> None:
    extents = manifest["tenants"][2]["extents"]
    extents[1][1] = extents[0][1]


def same_page_twice(manifest: Any, arrays: Any) -> None:
    arrays["pages/1"][3] = arrays["pages/1"][4]


def page_outside(manifest: Any, arrays: Any) -> None:
    arrays["pages/1"][0] = 10**6


def page_before(manifest: Any, arrays: Any) -> None:
    arrays["pages/1"][0] = -1


def stand_on_exclusive(manifest: Any, arrays: Any) -> None:
    own = next(extent for extent in manifest["tenants"][0]["extents"] if extent[3])
    manifest["tenants"][2]["extents"][-1][1] = own[1]


def smaller_owner(manifest: Any, arrays: Any) -> None:
    arrays["owner"] = arrays["owner"][:-1].clone()


def other_dtype(manifest: Any, arrays: Any) -> None:
    arrays["owner"] = arrays["owner"].double()


def huge_layer(manifest: Any, arrays: Any) -> None:
    manifest["tenants"][0]["layout"][-1]["shape"] = [2**40]


def many_dimensions(manifest: Any, arrays: Any) -> None:
    manifest["tenants"][0]["layout"][-1]["shape"] = [1] * 1000


def alias_of_alias(manifest: Any, arrays: Any) -> None:
    manifest["tenants"][0]["keys"] = [["a", "b"], ["b", "a"]]


def deep(manifest: Any, arrays: Any) -> None:
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    manifest["tenants"][0]["extents"] = nested


ENEMIES: dict[str, Callable[[Any, Any], None]] = {
    "an extent outside": extent(0, position=5_600),
    "a negative extent": extent(0, position=-1),
    "an extent that overlaps": overlapping,
    "an extent too long": extent(0, length=10**9),
    "an extent of a fraction": extent(0, position=1.5),  # type: ignore[arg-type]
    "an extent that is perhaps exclusive": extent(0, exclusive=1),
    "a page twice": same_page_twice,
    "a page outside": page_outside,
    "a page before": page_before,
    "somebody on exclusive positions": stand_on_exclusive,
    "a smaller owner": smaller_owner,
    "an owner of another dtype": other_dtype,
    "a huge layer": huge_layer,
    "many dimensions": many_dimensions,
    "names that stand for each other": alias_of_alias,
    "deep lists": deep,
    "a name twice": tenant(1, name="one"),
    "no name": tenant(1, name=""),
    "a number for a name": tenant(1, name=3),
    "no layout": tenant(1, layout=[]),
    "too few pages": tenant(1, pages=3),
    "pages of nothing": tenant(1, page_size=0),
    "a scale that is not": tenant(1, scale=float("nan")),
    "buffers that are not there": tenant(2, rest=["secret"]),
    "notes that are not": tenant(1, notes=[1]),
    "no tenants": whole(tenants=None),
    "another version": whole(version=2),
    "another kind": whole(kind="weightbank rows"),
    "a format that runs code": whole(format="__import__('os').system('true')"),
    "another format": whole(format="Native('bfloat16')"),
    "no positions": whole(positions=0),
    "countless positions": whole(positions=10**15),
    "a reserve beyond": whole(reserve=10**9),
    "a negative generation": whole(generation=-1),
}


@pytest.mark.parametrize("enemy", ENEMIES)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, enemy: str) -> None:
    path = tmp_path / "pool"
    mixed().save(path)
    rewritten(path, ENEMIES[enemy])
    with pytest.raises(CorruptError, match=str(path)):
        Pool.open(path)


def test_an_unchanged_rewritten_file_opens(tmp_path: Path) -> None:
    mixed().save(tmp_path / "pool")
    rewritten(tmp_path / "pool", lambda manifest, arrays: None)
    assert pooled.same(Pool.open(tmp_path / "pool"), mixed())


def test_notes_that_are_not_json_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    pool = Pool(2_000)
    pool.save(tmp_path / "pool")
    before = (tmp_path / "pool").read_bytes()
    pool.add(pooled.tasks()[0], importance=pooled.importances()["one"], notes={"what": object()})
    with pytest.raises(StoreError, match="cannot be kept as JSON"):
        pool.save(tmp_path / "pool")
    assert (tmp_path / "pool").read_bytes() == before


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = mixed()
    pool.save(tmp_path / "pool")
    before = (tmp_path / "pool").read_bytes()
    pool.remove("one")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightbank.store.media.os.posix_fallocate", full)
    with pytest.raises(CapacityError):
        pool.save(tmp_path / "pool")
    assert (tmp_path / "pool").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["pool"]

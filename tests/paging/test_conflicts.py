from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pooled
from weightbank.errors import ConflictError
from weightbank.paging import Pool


@pytest.mark.parametrize("mapped", [True, False])
def test_who_saves_second_is_told_and_overwrites_nothing(tmp_path: Path, mapped: bool) -> None:
    """Two processes open one file and edit it: neither edit is lost without a word."""
    path = tmp_path / "pool.safetensors"
    pooled.filled().save(path)
    first, second = Pool.open(path, mapped=mapped), Pool.open(path, mapped=mapped)
    first.remove("one")
    second.remove("two")
    first.save(path)
    first.save(path)  # what it saved itself it may replace
    written = path.read_bytes()
    for _ in range(2):
        with pytest.raises(ConflictError, match="was replaced since this pool read or wrote it.*call refresh"):
            second.save(path)
    assert path.read_bytes() == written
    second.save(tmp_path / "other.safetensors")  # nobody else's
    assert second.refresh()
    assert list(second) == ["two", "conv"]
    second.remove("two")
    second.save(path)
    assert list(Pool.open(path)) == ["conv"]
    (tmp_path / "here").symlink_to(tmp_path)
    for name in (path, tmp_path / "here" / "pool.safetensors", tmp_path / "here" / ".." / tmp_path.name / path.name):
        with pytest.raises(ConflictError):
            first.save(name)
    first.save(path, overwrite=True)
    assert list(Pool.open(path)) == ["two", "conv"]


def test_a_new_pool_replaces_a_file_until_somebody_else_has_saved_there(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    pooled.filled().save(path)
    pool = pooled.filled()
    pool.save(path)
    path.write_bytes(b"something else")
    with pytest.raises(ConflictError, match="by something that is no pool"):
        pool.save(path)
    path.unlink()
    pool.save(path)  # nothing is lost where nothing is
    assert pooled.same(Pool.open(path), pool)


def test_refreshing_notices_other_networks_on_the_same_numbers(tmp_path: Path) -> None:
    """Copies of one network stand on its numbers, so the owner's bytes do not tell who is there."""
    path = tmp_path / "pool.safetensors"
    one = pooled.tasks()[0]
    pool = Pool(one.layout.size)
    pool.add(one, importance=pooled.importances()["one"])
    pool.save(path)
    first, second = Pool.open(path), Pool.open(path)
    for pool, name in ((first, "a"), (second, "b")):
        pool.add(one, name=name, importance=pooled.importances()["one"])
    assert torch.equal(first.generation.owner.raw, second.generation.owner.raw)
    second.save(path)
    assert first.refresh()
    assert list(first) == ["one", "b"]
    assert not first.refresh()


def test_threads_that_save_one_pool_do_not_conflict(tmp_path: Path) -> None:
    pool = pooled.filled()
    with ThreadPoolExecutor(4) as threads:
        for saved in [threads.submit(pool.save, tmp_path / "pool.safetensors") for _ in range(20)]:
            saved.result()
    assert pooled.same(Pool.open(tmp_path / "pool.safetensors"), pool)

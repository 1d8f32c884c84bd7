"""What counts as a device, and what sync does on it; a plain file and `/dev/zero` stand in."""

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emulated_dax import AREA, MIB, Emulated, address, describe
from weightbank.errors import CapacityError, StoreError
from weightbank.store import RowLog
from weightbank.store import node as node_module
from weightbank.store.dax import DaxDevice


@pytest.fixture
def dax(tmp_path: Path) -> Emulated:
    return Emulated(tmp_path)


@pytest.fixture
def zero(tmp_path: Path) -> Iterator[DaxDevice]:
    """A real character device that can be mapped and shared within one mapping; its bytes go with it."""
    path = Path("/dev/zero")
    if not path.is_char_device():
        pytest.skip("no /dev/zero here")
    number = path.stat().st_rdev
    describe(tmp_path / "sys", f"{os.major(number)}:{os.minor(number)}", 64 * MIB)
    device = DaxDevice(path, sysfs=tmp_path / "sys")
    yield device
    device.unlock()


@pytest.mark.parametrize("size", ["0", "", "many", "-4194304", "4194303"])
def test_node_without_a_usable_size_says_what_to_do(size: str, dax: Emulated) -> None:
    dax.describe(size)
    with pytest.raises(StoreError, match="daxctl"):
        dax.device()


def test_what_is_no_device_says_what_to_do(dax: Emulated, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not a character device.*daxctl"):
        DaxDevice(dax.node)
    with pytest.raises(StoreError, match=r"No such file.*daxctl"):
        DaxDevice(tmp_path / "dax9.9")
    with pytest.raises(StoreError, match="daxctl"):
        RowLog("/dev/null")
    (dax.sysfs / "0:0" / "subsystem").symlink_to(tmp_path)
    with pytest.raises(StoreError, match=f"kind '{tmp_path.name}', wanted kind 'dax'"):
        dax.device()


def test_node_that_may_not_be_opened_or_mapped_says_what_to_do(dax: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(dax.node, 63 * MIB)
    with pytest.raises(StoreError, match="cannot map its 67,108,864 bytes"):
        dax.device().exists("manifest.json")

    def forbid(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", forbid)
    with pytest.raises(StoreError, match=r"Permission denied.*chown"):
        dax.device().exists("manifest.json")


@pytest.mark.parametrize(
    ("size", "align", "limit"),
    [(64 * MIB + 4096, 2 * MIB, 64 * MIB), ("0x4000000", 2 * MIB, 64 * MIB), (48 * MIB, 32 * MIB, 32 * MIB)],
)
def test_whole_alignment_units_are_mapped(size: int | str, align: int, limit: int, dax: Emulated) -> None:
    dax.describe(size, align)
    device = dax.device()
    device.lock()
    device.replace("a", bytes(10))
    assert device.limit == limit
    with pytest.raises(CapacityError, match=f"{limit:,}"):
        device.open("b", writable=True, capacity=limit - AREA).reserve(limit - AREA)
    device.open("b", writable=True, capacity=limit - 2 * AREA).reserve(limit - 2 * AREA)  # up to the last byte
    device.unlock()


def test_views_outlive_the_writer_and_do_not_hold_its_lock(dax: Emulated) -> None:
    device = dax.device()
    device.replace("a", b"12345")
    view = device.used("a")
    device.unlock()
    other = dax.device()
    other.lock()
    other.unlock()
    assert view.tobytes() == b"12345"
    assert device.read("a", 5) == b"12345"


def test_forgotten_device_gives_up_its_lock(dax: Emulated) -> None:
    device = dax.device()
    device.lock()
    del device
    dax.device().lock()


def test_blob_opened_again_syncs_what_a_killed_writer_stored(zero: DaxDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[int, int]] = []
    monkeypatch.setattr(node_module, "pmem_persist", lambda: lambda *where: flushed.append(where))
    zero.open("a", writable=True).reserve(9000)
    blob = zero.open("a", writable=True)
    flushed.clear()
    blob.sync()
    assert flushed == [(address(zero, "a"), 9000)]


def test_plain_file_is_synced_by_msync(dax: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "pmem_persist", lambda: pytest.fail)  # flushing caches does not write a file
    device = dax.device()
    assert device.persistence == "none"
    device.lock()
    assert device.persistence == "msync"
    blob = device.open("a", writable=True)
    blob.reserve(10_000)
    blob.write(5000, b"123")
    blob.sync()
    device.unlock()


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_refused_msync_promises_nothing_and_works_on(
    refusal: int, dax: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_msync(monkeypatch, refusal)
    device = dax.device()
    with RowLog(device, durability="commit") as log:
        log.create(10)
        log.append(torch.zeros(10))
        log.flush(durable=True)
        assert device.persistence == "none"
    assert RowLog(dax.device(), read_only=True).count == 1


def test_failing_msync_is_an_error(dax: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_msync(monkeypatch, errno.EIO)
    with pytest.raises(StoreError, match="Input/output error"):
        dax.device().lock()
    monkeypatch.undo()
    dax.device().lock()


def refuse_msync(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class Refusing(mmap.mmap):
        def flush(self, offset: int = 0, size: int = 0) -> None:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(mmap, "mmap", Refusing)


def test_character_device_is_synced_by_flushing_what_was_written(
    zero: DaxDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, int]] = []
    monkeypatch.setattr(node_module, "pmem_persist", lambda: lambda *where: flushed.append(where))
    blob = zero.open("a", writable=True, capacity=10_000)
    assert zero.persistence == "libpmem"
    blob.reserve(10_000)
    start = address(zero, "a")
    flushed.clear()
    blob.write(7000, b"45")
    blob.write(5000, b"123")
    blob.sync()
    blob.sync()
    assert flushed == [(start + 5000, 2002)]


def test_log_on_a_character_device(zero: DaxDevice) -> None:
    with RowLog(zero, durability="commit") as log:
        log.create(1000)
        assert zero.persistence == ("libpmem" if node_module.pmem_persist() else "msync")
        for number in range(3):
            log.append(torch.full((1000,), float(number)))
        log.flush(durable=True)
        assert all(torch.equal(log.row(number), torch.full((1000,), float(number))) for number in range(3))

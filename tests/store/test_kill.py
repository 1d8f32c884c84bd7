"""What has been appended survives kill -9, whatever the writer was doing; nothing torn is ever read."""

import random
import shutil
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from killing import Children, Tell
from weightbank.errors import LockedError, OverwrittenError
from weightbank.formats import BlockFloatingPoint, Native, format_of
from weightbank.store import RowLog

STEP = 1009
BFP8 = "BlockFloatingPoint(8, block=64)"


def base(size: int) -> Tensor:
    return torch.randn(size + STEP, generator=torch.Generator().manual_seed(size))


def content(number: int, numbers: Tensor) -> Tensor:
    """Row `number`: as different from every other as random numbers are, and known from its number alone."""
    start = number * 7 % STEP
    return numbers[start : start + len(numbers) - STEP] * (1 + number)


def warm() -> None:
    """Compile what encodes rows, so that each child begins at once."""
    format_of(BFP8).encode_row(torch.ones(64), torch.empty(65, dtype=torch.uint8))


def append_rows(
    tell: Tell, where: str, size: int, format: str, keep: int | None, durability: str, until: int | None = None
) -> None:
    """A child: append rows for ever (or up to row `until`) and tell how many there are after each `append`."""
    numbers = base(size)
    log = RowLog(where, format=format, durability=durability)  # type: ignore[arg-type]
    log.create(size, keep=keep)
    tell(log.count)
    while until is None or log.count < until:
        log.append(content(log.count, numbers), step=3 * log.count)
        tell(log.count)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(__file__) as children:
        yield children


def kill_often(children: Children, where: Path, size: int, format: str, keep: int | None, *, kills: int) -> None:
    """Several kills of writers on one log, each somewhere in the middle of an append; look at the log after each."""
    chance = random.Random(f"{size} {format} {keep}")
    numbers, chosen = base(size), format_of(format)
    durability = chance.choice(["process", "commit"])
    told = checked = 0
    for kill in range(kills):
        child = children.start("append_rows", str(where), size, format, keep, durability)
        for _ in range(chance.randrange(1, 12)):
            child.hear()
        time.sleep(chance.random() * (2e-3 + 4e-9 * size))
        told = max(told, child.kill())
        with RowLog(where, read_only=kill % 2 == 0) as log:
            assert told <= log.count <= told + 1  # the one in flight may have made it
            assert log.steps == [3 * number for number in range(log.count)]
            assert log.damaged() == []
            first = 0 if keep is None else max(0, log.count - keep)
            assert log.first == first
            for number in range(max(first, checked), log.count):
                assert torch.equal(log.row(number), chosen.quantize(content(number, numbers))), number
            told = log.count
            checked = 0 if kill == kills - 2 else log.count  # all of them in the end
    shutil.rmtree(where)


@pytest.mark.parametrize(
    ("size", "format", "keep"),
    [(300, "fp32", None), (90_001, BFP8, 5), (600_000, "fp32", None)],
    ids=["1 KiB", "91 KiB in a ring", "2.4 MB"],
)
def test_every_acknowledged_row_survives_kills(
    children: Children, tmp_path: Path, size: int, format: str, keep: int | None
) -> None:
    kill_often(children, tmp_path / "log", size, format, keep, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [None, 5], ids=["all", "ring"])
@pytest.mark.parametrize("format", ["fp32", BFP8])
@pytest.mark.parametrize("size", [300, 5_000, 100_001, 700_000])
def test_every_acknowledged_row_survives_many_kills(
    children: Children, tmp_path: Path, size: int, format: str, keep: int | None
) -> None:
    kill_often(children, tmp_path / "log", size, format, keep, kills=6)


def test_kill_while_creating_leaves_a_log_or_none(children: Children, tmp_path: Path) -> None:
    chance = random.Random(1)
    for number in range(10):
        where = tmp_path / str(number)
        child = children.start("append_rows", str(where), 1000, "fp32", None, "process")
        time.sleep(chance.random() * 3e-3)
        told = child.kill()
        with RowLog(where) as log:
            if told >= 0:
                assert log.created
            log.create(1000)
            assert log.count >= max(0, told)
            log.append(content(log.count, base(1000)))


def test_program_that_ends_without_closing_keeps_its_rows_and_frees_the_lock(
    children: Children, tmp_path: Path
) -> None:
    for durability in ("process", "commit", "none"):
        where = tmp_path / durability
        child = children.start("append_rows", str(where), 5000, "fp32", None, durability, 20)
        assert child.wait() == 20
        assert child.status == 0
        assert not (where / "staging.bin").exists()
        with RowLog(where) as log:
            assert (log.count, log.damaged()) == (20, [])


def test_rows_in_flight_are_lost_with_the_process_under_durability_none(children: Children, tmp_path: Path) -> None:
    where = tmp_path / "log"
    child = children.start("append_rows", str(where), 50_000, "fp32", None, "none")
    for _ in range(20):
        child.hear()
    told = child.kill()
    with RowLog(where) as log:
        assert told - 4 <= log.count <= told + 1  # four staging slots in plain memory
        assert log.damaged() == []


def test_a_living_writer_in_another_process_is_refused_and_read_along(children: Children, tmp_path: Path) -> None:
    where, size, numbers = tmp_path / "log", 20_000, base(20_000)
    child = children.start("append_rows", str(where), size, BFP8, None, "process")
    chosen = BlockFloatingPoint(8, block=64)
    while (child.hear() or 0) < 3:
        pass
    with pytest.raises(LockedError, match="another writer"):
        RowLog(where)
    with RowLog(where, read_only=True) as log:
        seen = log.count
        for _ in range(50):
            child.hear()
            newest = log.refresh()
            assert newest >= seen
            for number in range(max(seen, newest - 3), newest):
                assert torch.equal(log.row(number), chosen.quantize(content(number, numbers)))
            seen = newest
        assert log.damaged() == []
    assert seen > 20
    child.kill()


def test_reader_of_a_running_ring_sees_whole_rows_or_is_told_that_they_are_gone(
    children: Children, tmp_path: Path
) -> None:
    where, size, numbers = tmp_path / "log", 200_000, base(200_000)
    child = children.start("append_rows", str(where), size, "fp32", 6, "process")
    while (child.hear() or 0) < 20:
        pass
    out, whole, gone = torch.empty(3, size), 0, 0
    for turn in count():
        with RowLog(where, read_only=True) as log:
            for back in (2, 5, 6, 7):
                number = log.count - back - 1
                try:
                    log.read(range(number, number + 3), slice(0, size), out)
                except OverwrittenError:
                    gone += 1
                    continue
                whole += 1
                for offset in range(3):
                    assert torch.equal(out[offset], Native("float32").quantize(content(number + offset, numbers)))
        if turn >= 10 and whole and gone:
            break
        assert turn < 200
    child.kill()

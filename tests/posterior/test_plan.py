from pathlib import Path

import pytest
import torch
from torch import nn

from weightbank.distributions import Keep, Moments, Sketch, Window
from weightbank.errors import CapacityError
from weightbank.layout import Layout
from weightbank.posterior.machine import peak_memory
from weightbank.posterior.plan import plan
from weightbank.store import RowLog

LAYOUT = Layout.of(nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 50)))  # 9,110 weights


@pytest.mark.parametrize(
    ("format", "keep", "iterates"),
    [
        ("fp32", "all", 300),
        ("bf16", "all", 450),
        ("bfp8", "all", 820),
        ("fp32", Window(20), 130),
        ("bfp8", Sketch(8), 100),
        ("fp32", Sketch(5), 31),
    ],
)
def test_bytes_are_those_of_a_recorded_log(tmp_path: Path, format: str, keep: Keep, iterates: int) -> None:
    planned = plan(LAYOUT, iterates=iterates, format=format, keep=keep)
    moments = Moments(LAYOUT, rows=RowLog(tmp_path, format=format), keep=keep)
    assert moments.rows is not None
    generator = torch.Generator().manual_seed(0)
    most = 0
    for number in range(iterates):
        moments.update(torch.randn(LAYOUT.size, generator=generator))
        if number % 50 == 0 or number == iterates - 1:
            most = max(most, moments.rows.nbytes)
    moments.close()
    assert moments.rows.nbytes == planned.bytes
    # at most one slot of the moments was still to be written when the log was at its largest
    assert most <= planned.most_bytes <= most + 4096 + 8 * LAYOUT.size + 8192


def test_a_number_of_weights_needs_a_page_for_the_manifest_as_a_small_layout_does() -> None:
    small = Layout.of(nn.Linear(3, 4))
    assert plan(small.size, iterates=10).bytes == plan(small, iterates=10).bytes


def test_the_published_posterior_of_75_epochs_takes_a_third_of_its_rule() -> None:
    planned = plan(2_797_010, iterates=45_000)
    # 4 n k = 503.46 GB of numbers; padding to 4 KiB and the rest add less than 0.1 %
    assert planned.bytes == pytest.approx(4 * 2_797_010 * 45_000, rel=1e-3)
    assert planned.bytes > 4 * 2_797_010 * 45_000


@pytest.mark.parametrize("keep", ["all", Window(7), Sketch(4)])
def test_a_budget_gives_the_most_iterates_that_fit(keep: Keep) -> None:
    planned = plan(LAYOUT, format="bfp8", keep=keep, budget=40_000_000)
    assert planned.most_bytes <= 40_000_000
    assert plan(LAYOUT, iterates=planned.iterates + 1, format="bfp8", keep=keep).most_bytes > 40_000_000


def test_a_budget_for_no_iterate_is_refused_with_what_one_needs() -> None:
    # a segment of 16 MiB is reserved before its first row is written
    with pytest.raises(CapacityError, match=r"not one iterate of 9,110 weights fits into 1.0 kB; it needs 17.2 MB"):
        plan(LAYOUT, budget=1000)
    with pytest.raises(CapacityError, match="neither iterates nor a budget"):
        plan(LAYOUT)


def test_shortage_counts_the_missing_bytes_and_check_says_what_would_fit(tmp_path: Path) -> None:
    planned = plan(LAYOUT, iterates=1000, where=tmp_path, budget=20_000_000, ram=10**9)
    assert planned.shortage == {"disk": planned.most_bytes - 20_000_000}
    with pytest.raises(CapacityError, match=r"need 50.\d MB of disk, 20.0 MB are free") as caught:
        planned.check()
    assert "iterates fit" in str(caught.value)
    assert "8-bit rows (bfp8) take" in str(caught.value)
    assert plan(LAYOUT, iterates=10, where=tmp_path).check().shortage == {}
    assert not list(tmp_path.iterdir())


def test_check_refuses_for_memory(tmp_path: Path) -> None:
    planned = plan(LAYOUT, iterates=10, where=tmp_path, ram=1000)
    assert set(planned.shortage) == {"memory"}
    with pytest.raises(CapacityError, match="of memory"):
        planned.check()


def test_rows_in_memory_count_as_memory() -> None:
    on_disk, in_memory = plan(LAYOUT, iterates=500), plan(LAYOUT, iterates=500, where=":memory:")
    assert in_memory.bytes == 0
    assert in_memory.memory["record"] == on_disk.memory["record"] + on_disk.bytes


def test_drawing_in_groups_takes_no_more_than_two_groups() -> None:
    few, many = plan(10**7, iterates=100, samples=32), plan(10**7, iterates=100, samples=1000)
    assert many.memory["evaluate"] == few.memory["evaluate"]
    assert many.memory["sample"] - few.memory["sample"] >= 4 * 10**7 * 968


@pytest.mark.slow
@pytest.mark.parametrize("format", ["fp32", "bfp8"])
def test_memory_is_not_less_than_what_is_taken(tmp_path: Path, format: str) -> None:
    layout = Layout.of(nn.Linear(3000, 3000, bias=False))  # vectors too large to be kept by the allocator
    planned = plan(layout, iterates=4, format=format, samples=4)
    warm = Moments(LAYOUT, rows=RowLog(":memory:", format=format))
    for _ in range(2):
        warm.update(torch.zeros(LAYOUT.size))
    warm.gaussian().sample(2)
    theta = torch.zeros(layout.size)
    with peak_memory() as recording:
        moments = Moments(layout, rows=RowLog(tmp_path, format=format))
        for _ in range(4):
            moments.update(theta.add_(0.1))
        moments.flush()
    moments.close()
    with peak_memory() as drawing:
        law = Moments(layout, rows=RowLog(tmp_path, read_only=True)).gaussian()
        for _ in law.draws(4):
            pass
    if recording.bytes is None or drawing.bytes is None:
        pytest.skip("the peak cannot be measured here")
    slack = 8 << 20  # the allocator's and the interpreter's
    assert planned.memory["record"] / 2 < recording.bytes < planned.memory["record"] + slack
    assert planned.memory["evaluate"] / 3 < drawing.bytes < planned.memory["evaluate"] + slack


def test_measuring_gives_times_and_leaves_nothing_behind(tmp_path: Path) -> None:
    planned = plan(LAYOUT, iterates=100, where=tmp_path, measure=True)
    assert planned.speeds is not None
    assert planned.seconds["write"] == pytest.approx(100 * planned.bytes_per_iterate / planned.speeds.write)
    assert planned.seconds["sample"] > 0
    assert not list(tmp_path.iterdir())
    assert plan(LAYOUT, iterates=100, where=tmp_path).seconds == {}


def test_text_and_numbers_agree(tmp_path: Path) -> None:
    planned = plan(LAYOUT, iterates=100, keep=Window(5), where=tmp_path)
    found = planned.to_dict()
    assert found["bytes"] == sum(found["disk"].values())
    assert found["most_bytes"] == found["bytes"] + sum(found["working"].values())
    assert (found["keep"], found["rows"]) == ("window", 5)
    assert f"{found['bytes']:,}" in str(planned)
    assert max(len(line) for line in str(planned).splitlines()) <= 100 + len(str(tmp_path))

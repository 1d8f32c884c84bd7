import math
import threading

import numpy as np
import pytest
import torch
from format_oracles import random_bits

from weightbank.errors import FormatError
from weightbank.formats import (
    BlockFloatingPoint,
    ByDimensions,
    FixedPoint,
    Microscaling,
    MiniFloat,
    Native,
    Per,
    Tile,
    coded,
    key,
)
from weightbank.formats.rounding import bits, resolution, rounded

FORMATS = [
    BlockFloatingPoint(8),
    BlockFloatingPoint(8, Per(0)),
    BlockFloatingPoint(8, 16),
    BlockFloatingPoint(5, Tile(0, 3), codes="symmetric"),
    BlockFloatingPoint(4, ByDimensions()),
    BlockFloatingPoint(16, 32),
    BlockFloatingPoint(2),
    FixedPoint(8, 4),
    FixedPoint(16, 8),
    MiniFloat(4, 3, specials="nan"),
    MiniFloat(5, 10),
    MiniFloat(2, 1, specials="none"),
    Microscaling("mxint8"),
    Microscaling("mxfp6_e3m2", axis=0),
    Microscaling("mxfp4_e2m1"),
    Native("bfloat16"),
    Native("float16"),
    Native("float32"),
]


def hashed(word: int, place: int) -> int:
    """The documented hash in Python's integers."""
    x = (place + (word & 0xFFFFFFFF)) % 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    return (x + (word >> 32)) * 0x846CA68B % 2**32


# keys and bits


def test_keys_are_stable_numbers_of_64_bits():
    assert key(0, "conv.weight", 1) == 0x98616BB67E5F4957  # runs of older versions resume
    assert all(0 <= key(seed, "w", step) < 2**64 for seed in (-1, 0, 2**70) for step in range(20))


def test_every_part_of_a_key_counts():
    parts = [(seed, stream, step) for seed in range(3) for stream in (0, 1, "0", "1", "a") for step in range(3)]
    assert len({key(*part) for part in parts}) == len(parts)
    assert key(np.int64(3), np.int32(1), np.int64(2)) == key(3, 1, 2)


def test_bits_are_the_documented_hash():
    word = key(7, "w", 3)
    for start in (0, 5, 2**32 - 2, 2**33 + 1):
        want = [hashed(word, place) for place in range(start, start + 6)]
        assert [value % 2**32 for value in bits(word, 6, start=start).tolist()] == want


def test_bits_of_a_part_are_a_part_of_the_bits():
    word = key(0, "w", 0)
    assert torch.equal(bits(word, 1000)[123:457], bits(word, 334, start=123))


def test_bits_look_independent_over_places_and_keys():
    n, words = 2**14, [key(0, "w", step) for step in range(64)]
    u = torch.stack([bits(word, n) for word in words]).to(torch.float64) / 2**32  # uniform on -1/2..1/2
    assert abs(u.mean()) < 5 * math.sqrt(1 / 12 / u.numel())
    z = u * math.sqrt(12)
    for lag in (1, 2, 3, 16, 64, 4096):  # neighbours in a tensor
        correlation = (z[:, lag:] * z[:, :-lag]).mean(1)
        assert correlation.abs().max() < 5.5 / math.sqrt(n - lag)
    between = (z @ z.T / n).fill_diagonal_(0)  # 2016 pairs of steps: 5.5 sigma once in 13,000 runs
    assert between.abs().max() < 5.5 / math.sqrt(n)
    counts = torch.stack([torch.histc(row, 64, -0.5, 0.5) for row in u])
    chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum(1)
    assert abs(chi_square.mean() - 63) < 5 * math.sqrt(2 * 63 / len(words))
    assert chi_square.max() < 63 + 6 * math.sqrt(2 * 63)


# rounding to whole numbers


def test_chance_of_rounding_up_is_exactly_the_fraction():
    digits = 8  # all random numbers of 8 bits once each
    every = (torch.arange(256) << 24).to(torch.int32)
    for whole in (-3, -1, 0, 2):
        for fraction in range(256):
            t = torch.full((256,), whole + fraction / 256)
            ups = rounded(t, every, digits) - whole
            assert int(ups.sum()) == fraction
            assert set(ups.tolist()) <= {0, 1}


@pytest.mark.parametrize("width", range(2, 17))
def test_whole_numbers_stay_whatever_the_bits(width):
    most = 2 ** (width - 1)
    t = torch.arange(-most, most, dtype=torch.float32)
    for word in (0, 1, 2**31 - 1, -1, -(2**31)):
        assert torch.equal(rounded(t, torch.full(t.shape, word, dtype=torch.int32), resolution(most - 1)).float(), t)


# formats


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_quantizing_at_random_twice_changes_nothing(fmt):
    generator = torch.Generator().manual_seed(0)
    for spread in (0, 3, 20):
        x = torch.cat([random_bits(480, generator, spread), torch.tensor([-1.0, -1.999, 0.0, -2.0] * 8)]).view(16, 32)
        x = x / x.abs().max() * 100  # within float16
        once = fmt.quantize(x, rounding="stochastic", key=key(0, "w", 1))
        assert torch.equal(fmt.quantize(once, rounding="stochastic", key=key(0, "w", 2)), once)
        assert torch.equal(fmt.quantize(once), once)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_mean_over_many_keys_is_the_number(fmt):
    def draws(x: torch.Tensor, count: int, stream: str) -> torch.Tensor:
        return torch.stack([fmt.quantize(x, rounding="stochastic", key=key(0, stream, step)) for step in range(count)])

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 32, generator=generator)
    x[:, 0] = torch.tensor([4.0, -4.0, 3.0, -3.0, 2.0, -2.0])
    seen = draws(x, 40, "neighbours")
    lower, upper = seen.amin(0), seen.amax(0)  # equal where only one was seen: then x is this point
    fraction = 0.1 + 0.8 * torch.rand(x.shape, generator=generator)
    x = lower + fraction * (upper - lower)
    step, error = (upper - lower).double(), draws(x, 400, "mean").double().mean(0) - x
    moved = step > 0
    assert moved.any() or fmt == Native("float32")
    assert (error[~moved] == 0).all()
    error, fraction = error[moved] / step[moved], ((x - lower) / (upper - lower))[moved].double()
    variance = fraction * (1 - fraction) / 400
    assert (error.abs() <= 5 * variance.sqrt()).all()
    assert error.sum().abs() <= 5 * variance.sum().sqrt()


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_results_are_the_two_neighbours_on_the_grid(fmt):
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    x[:, 0] = 4.0
    nearest = fmt.quantize(x)
    for step in range(8):
        drawn = fmt.quantize(x, rounding="stochastic", key=key(1, 0, step))
        assert ((drawn == nearest) | ((drawn - x).sign() == -(nearest - x).sign())).all()
        between = fmt.quantize((drawn + nearest) / 2)
        assert ((between == drawn) | (between == nearest)).all()
        assert torch.equal(fmt.pack(x, rounding="stochastic", key=key(1, 0, step)).unpack(), drawn)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_same_bits_with_and_without_numba_in_any_memory_order(fmt, monkeypatch):
    x = torch.randn(6, 10, 4, generator=torch.Generator().manual_seed(3))
    word = key(2, "w", 5)
    want = fmt.quantize(x, rounding="stochastic", key=word)
    shuffled = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not shuffled.is_contiguous()
    assert torch.equal(fmt.quantize(shuffled, rounding="stochastic", key=word), want)
    assert torch.equal(fmt.quantize(x.double(), rounding="stochastic", key=word).float(), want)
    out = x.clone()
    assert fmt.quantize(out, rounding="stochastic", key=word, out=out) is out
    assert torch.equal(out, want)
    monkeypatch.setattr(coded, "available", lambda: False)
    assert torch.equal(fmt.quantize(x, rounding="stochastic", key=word), want)


def test_same_bits_for_any_number_of_threads(monkeypatch):
    fmt, x, word = BlockFloatingPoint(8), torch.randn(2**16, generator=torch.Generator().manual_seed(4)), key(0, "w", 0)
    want, threads = fmt.quantize(x, rounding="stochastic", key=word), torch.get_num_threads()
    results = {}
    workers = [
        threading.Thread(target=lambda n=n: results.update({n: fmt.quantize(x, rounding="stochastic", key=word)}))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    monkeypatch.setattr(coded, "available", lambda: False)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results[f"reference {count}"] = fmt.quantize(x, rounding="stochastic", key=word)
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 5
    assert all(torch.equal(result, want) for result in results.values())


def test_negative_powers_of_two_do_not_coarsen_the_block_when_rounded_again():
    fmt = BlockFloatingPoint(8, block=4)
    x = torch.tensor([-1.999, 3 / 64, 0.0, 0.0])  # may round onto code -128
    for step in range(200):
        once = fmt.quantize(x, rounding="stochastic", key=key(0, 0, step))
        assert torch.equal(fmt.quantize(once, rounding="stochastic", key=key(1, 0, step)), once)


def test_a_missing_or_bad_key_is_refused():
    for fmt in (BlockFloatingPoint(8), Native("float32"), Native("bfloat16"), Microscaling("mxint8")):
        with pytest.raises(FormatError, match=r"draws its bits from a key; give key=weightbank.formats.key\(seed"):
            fmt.quantize(torch.ones(3), rounding="stochastic")
        for bad in (-1, 2**64, True, 0.5):
            with pytest.raises((FormatError, TypeError), match="key"):
                fmt.pack(torch.ones(3), rounding="stochastic", key=bad)

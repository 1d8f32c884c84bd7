import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightbank.data.mel import LogMel, fft_size, mel, mel_bands
from weightbank.errors import DataError

RATE = 8000


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5


def slow(front: LogMel, sound: torch.Tensor, rate: int) -> np.ndarray:
    """The same levels by the definition of each: a discrete Fourier transform as a sum, triangles by cases."""
    length, size = round(front.seconds * rate), round(front.window * rate)
    padded = np.zeros(length)
    padded[: len(sound)] = sound.double().numpy()[:length]
    bins = 1 << math.ceil(math.log2(size))
    edges = np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + rate / 1400), front.bands + 2)
    energy = np.zeros((front.frames, front.bands))
    for frame in range(front.frames):
        start = round(frame * (length - size) / (front.frames - 1))
        hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / (size - 1)) for n in range(size)]
        window = padded[start : start + size] * hann
        for k in range(bins // 2 + 1):
            power = abs(np.sum(window * np.exp(-2j * np.pi * k * np.arange(size) / bins))) ** 2
            pitch = 2595 * math.log10(1 + k * rate / bins / 700)
            for band in range(front.bands):
                low, middle, high = edges[band : band + 3]
                if low < pitch <= middle:
                    energy[frame, band] += power * (pitch - low) / (middle - low)
                elif middle < pitch < high:
                    energy[frame, band] += power * (high - pitch) / (high - middle)
    return 1 + 10 * np.log10(np.maximum(energy / energy.max(), 10 ** (-front.range_db / 10))) / front.range_db


def test_levels_are_those_of_a_slow_fourier_transform():
    front = LogMel(frames=5, bands=6, seconds=0.1, window=0.0125)
    sound = noise(700)  # shorter than the 800 samples looked at
    np.testing.assert_allclose(front(sound, RATE).numpy(), slow(front, sound, RATE), atol=1e-4)  # 0.008 dB, float32


@pytest.mark.parametrize("hertz", [150, 440, 1000, 3000])
def test_a_tone_is_loudest_in_the_band_of_its_pitch(hertz):
    front = LogMel(bands=20)
    tone = torch.sin(2 * math.pi * hertz * torch.arange(RATE) / RATE)
    edges = np.linspace(float(mel(20.0)), float(mel(RATE / 2)), 22)
    expected = int(np.abs(edges[1:-1] - float(mel(float(hertz)))).argmin())
    assert (front(tone, RATE).argmax(1) == expected).all()


def test_loudness_of_the_whole_sound_does_not_matter():
    front, sound = LogMel(), noise(RATE)
    assert torch.allclose(front(sound, RATE), front(sound / 1000, RATE), atol=1e-5)


@pytest.mark.parametrize("sound", [torch.zeros(RATE), torch.zeros(0)], ids=["zeros", "nothing"])
def test_silence_is_zero_everywhere(sound):
    assert torch.equal(LogMel()(sound, RATE), torch.zeros(61, 20))


def test_what_comes_after_the_time_looked_at_does_not_matter():
    front, sound = LogMel(seconds=0.5), noise(RATE)
    assert torch.equal(front(sound, RATE), front(sound[: RATE // 2], RATE))


def test_a_sound_twice_as_loud_in_its_second_half_rises_by_six_decibels():
    front = LogMel(frames=2, bands=4, seconds=1.0, window=0.5)
    half = noise(RATE // 2)
    levels = front(torch.cat([half, 2 * half]), RATE)
    assert torch.allclose(levels[1] - levels[0], torch.full((4,), 20 * math.log10(2) / 80), atol=1e-6)


def test_triangles_overlap_to_one_between_the_first_and_last_middle():
    weights = mel_bands(12, 512, RATE)
    pitch = mel(torch.arange(257) * RATE / 512)
    edges = torch.linspace(float(mel(20.0)), float(mel(RATE / 2)), 14, dtype=torch.float64)
    inner = (pitch >= edges[1]) & (pitch <= edges[-2])
    assert torch.allclose(weights.sum(1)[inner], torch.ones(int(inner.sum())), atol=1e-6)


@given(bands=st.integers(1, 200), size=st.integers(2, 600), rate=st.integers(100, 96_000))
def test_no_band_is_empty(bands, size, rate):
    assert bool((mel_bands(bands, fft_size(size), rate).sum(0) > 0).all())


def test_a_thousand_hertz_is_a_thousand_mel():
    assert float(mel(1000.0)) == pytest.approx(1000, abs=0.02)  # the constants of the scale have four digits


@pytest.mark.parametrize(
    "wrong", [{"frames": 0}, {"bands": 2**20}, {"window": 2.0}, {"seconds": math.inf}, {"range_db": math.nan}]
)
def test_impossible_front_ends_are_refused(wrong):
    with pytest.raises(DataError, match="wanted positive numbers"):
        LogMel(**wrong)


@pytest.mark.parametrize("rate", [40, 2**31])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(DataError, match="samples per second; wanted at most 384,000"):
        LogMel()(noise(10), rate)

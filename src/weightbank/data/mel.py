"""Log-mel spectrograms: how loud a sound is at each moment in each band of pitch.

The mel scale is 2595 log10(1 + f / 700 Hz) (O'Shaughnessy, Speech Communication, 1987); the bands are triangles of
equal width on it that overlap by half (Davis and Mermelstein, IEEE TASSP 28(4), 1980).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from weightbank.errors import DataError

MAX_LEVELS = 2**20
"""The most levels in one spectrogram."""
MAX_RATE = 384_000
"""The most samples per second that are taken for a sound."""


@dataclass(frozen=True)
class LogMel:
    """Turn sounds of any length into images of `frames` x `bands` levels between 0 and 1.

    Args:
        frames: moments, evenly spread over `seconds`.
        bands: bands of pitch, evenly spread on the mel scale from 20 Hz to half the sampling rate.
        seconds: how much of a sound is looked at, from its start; a shorter one is followed by silence.
        window: seconds of sound that each moment is made of (a Hann window).
        range_db: 1 is the loudest level of the sound, 0 is this many decibels below, or less.

    Raises:
        DataError: a number that is not positive, a window longer than the sound, or more than 2^20 levels.
    """

    frames: int = 61
    bands: int = 20
    seconds: float = 1.0
    window: float = 0.032
    range_db: float = 80.0

    def __post_init__(self) -> None:
        good = self.frames > 0 and self.bands > 0 and self.frames * self.bands <= MAX_LEVELS
        if not (good and 0 < self.window <= self.seconds < math.inf and 0 < self.range_db < math.inf):
            raise DataError(
                f"{self}: wanted positive numbers, a window no longer than the sound, and at most {MAX_LEVELS:,} levels"
            )

    def samples(self, rate: int) -> int:
        """How many samples of a sound at `rate` per second are looked at.

        Raises:
            DataError: the rate is above 384,000 or makes windows of fewer than two samples.
        """
        if not (rate <= MAX_RATE and round(self.window * rate) >= 2):
            raise DataError(
                f"{rate:,} samples per second; wanted at most {MAX_RATE:,}, and two or more in a window of "
                f"{self.window:g} s"
            )
        return round(self.seconds * rate)

    def __call__(self, sound: Float[Tensor, " T"], rate: int) -> Float32[Tensor, "frames bands"]:
        """Return the levels of one sound, T samples at `rate` per second; a silent sound is 0 everywhere.

        Level = 1 + 10 log10(E / max E) / range_db, cut at 0, with E the energy of a band in a window.
        """
        length = self.samples(rate)
        size = round(self.window * rate)
        padded = torch.zeros(length)
        padded[: min(length, len(sound))] = sound[:length]
        starts = torch.linspace(0, length - size, self.frames).round().long()
        pieces = padded[starts[:, None] + torch.arange(size)] * torch.hann_window(size, periodic=False)
        energy: Tensor = torch.fft.rfft(pieces, n=fft_size(size)).abs().square() @ mel_bands(
            self.bands, fft_size(size), rate
        )
        loudest = energy.max()
        if loudest <= 0:
            return torch.zeros_like(energy)
        floor = 10 ** (-self.range_db / 10)
        return (energy / loudest).clamp_min_(floor).log10_().mul_(10 / self.range_db).add_(1).clamp_(0, 1)


def fft_size(size: int) -> int:
    """The least power of two that holds a window of `size` samples."""
    return 1 << (size - 1).bit_length()


@lru_cache(maxsize=8)
def mel_bands(bands: int, size: int, rate: int) -> Float32[Tensor, "bins bands"]:
    """Weights of the size/2 + 1 bins of a Fourier transform in each band: triangles of height 1 on the mel scale.

    A band too narrow to hold a bin takes the bin nearest to its middle.
    """
    edges = torch.linspace(float(mel(20.0)), float(mel(rate / 2)), bands + 2, dtype=torch.float64)
    bins = mel(torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    up, down = (bins[:, None] - low) / (middle - low), (high - bins[:, None]) / (high - middle)
    weights = torch.minimum(up, down).clamp_min_(0)
    nearest = (bins[:, None] - middle).abs().argmin(0)
    empty = weights.sum(0) == 0
    weights[nearest[empty], empty.nonzero().squeeze(1)] = 1
    return weights.to(torch.float32)


def mel(hertz: float | Tensor) -> Tensor:
    """Pitch on the mel scale: 2595 log10(1 + f / 700)."""
    return 2595 * torch.log10(1 + torch.as_tensor(hertz, dtype=torch.float64) / 700)

"""WAV files with whole-number samples (PCM, 8 to 32 bits), read from bytes that may be anybody's."""

import io
import wave
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from weightbank.errors import DataError


class Sound(NamedTuple):
    """Samples in [-1, 1], channels averaged, and how many there are per second."""

    samples: Float32[Tensor, " T"]
    rate: int


def read_wav(encoded: bytes, where: str, *, seconds: float) -> Sound:
    """Decode the first `seconds` of a WAV file; `where` names it in errors.

    Raises:
        DataError: no WAV file, not PCM, or one without a sample.
    """
    try:
        with wave.open(io.BytesIO(encoded)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if not 1 <= width <= 4:
                raise wave.Error(f"samples of {width} bytes")
            data = file.readframes(min(file.getnframes(), int(seconds * rate) + 1))
    except (wave.Error, EOFError, RuntimeError, ValueError, ArithmeticError) as error:
        raise DataError(f"{where} is no WAV file of PCM samples: {error or type(error).__name__}") from error
    count = len(data) // (width * channels)
    if count == 0 or rate < 1:
        raise DataError(f"{where} has {count} samples at {rate} per second; wanted at least one")
    whole = _whole(data[: count * width * channels], width)
    samples = torch.from_numpy(whole.reshape(count, channels).mean(1, dtype=np.float64))
    return Sound((samples / 2 ** (8 * width - 1)).to(torch.float32), rate)


def _whole(data: bytes, width: int) -> np.ndarray:
    """Return signed whole numbers of `width` bytes; 8-bit WAV samples are unsigned, 128 is silence."""
    if width == 1:
        return np.frombuffer(data, np.uint8).astype(np.int32) - 128
    if width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return padded.view("<i4").reshape(-1) >> 8
    return np.frombuffer(data, f"<i{width}")

import io
import wave

import numpy as np
import pytest
import torch

from weightbank.data.wav import read_wav
from weightbank.errors import DataError


def encode(data: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return buffer.getvalue()


GOOD = encode(np.arange(100, dtype="<i2").tobytes())


@pytest.mark.parametrize(
    ("width", "data"),
    [
        (1, bytes([0, 128, 255, 64])),
        (2, np.array([-32768, 0, 32512, -16384], "<i2").tobytes()),
        (3, b"".join(int(v).to_bytes(3, "little", signed=True) for v in (-(2**23), 0, 127 * 2**16, -(2**22)))),
        (4, np.array([-(2**31), 0, 127 * 2**24, -(2**30)], "<i4").tobytes()),
    ],
)
def test_samples_of_every_width_come_back_between_minus_one_and_one(width, data):
    sound = read_wav(encode(data, width=width, rate=11_025), "clip", seconds=1)
    assert sound.samples.tolist() == [-1.0, 0.0, 127 / 128, -0.5]
    assert sound.rate == 11_025


def test_channels_are_averaged():
    stereo = np.array([[100, 300], [-200, 0]], "<i2").tobytes()
    assert torch.equal(
        read_wav(encode(stereo, channels=2), "clip", seconds=1).samples, torch.tensor([200.0, -100.0]) / 32768
    )


def test_only_the_seconds_asked_for_are_decoded():
    assert len(read_wav(GOOD, "clip", seconds=10 / 8000).samples) == 11


def test_a_cut_file_gives_the_samples_it_has():
    assert read_wav(GOOD[:-51], "clip", seconds=1).samples.tolist() == [n / 32768 for n in range(74)]


BAD = {
    "no WAV": b"hello",
    "nothing": b"",
    "no samples": encode(b""),
    "compressed": GOOD.replace(b"fmt \x10\0\0\0\x01", b"fmt \x10\0\0\0\x55"),
    "samples of many bytes": GOOD.replace(b"\x10\0data", b"\x40\0data"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_wav_file_is_refused_by_name(content):
    with pytest.raises(DataError, match="row 7"):
        read_wav(content, "row 7", seconds=1)


def test_a_header_that_promises_gigabytes_takes_none():
    promised = bytearray(GOOD)
    promised[40:44] = (2**32 - 8).to_bytes(4, "little")
    assert len(read_wav(bytes(promised), "clip", seconds=1e9).samples) == 100


@pytest.mark.parametrize("seed", range(3))
def test_garbled_files_are_read_or_refused(seed):
    generator = np.random.default_rng(seed)
    good = np.frombuffer(GOOD, np.uint8)
    refused = 0
    for _ in range(300):
        bad = good.copy()
        bad[generator.integers(0, 48, 2)] ^= generator.integers(1, 256, 2, dtype=np.uint8)
        try:
            assert bool(torch.isfinite(read_wav(bad.tobytes(), "clip", seconds=1).samples).all())
        except DataError:
            refused += 1
    assert refused > 0

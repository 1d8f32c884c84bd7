import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from weightbank.data import LogMel, load, recordings
from weightbank.data.wav import read_wav
from weightbank.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pyarrow.compute")

ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FRONT = LogMel(frames=7, bands=5, seconds=0.1)


def clip(seed: int, count: int = 900, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(seed).integers(-9000, 9000, count, dtype=np.int16).tobytes())
    return buffer.getvalue()


def table(sounds: list[bytes | None], labels: list[int], **columns: list[str]) -> pa.Table:
    return pa.table(
        {"audio": pa.array([{"bytes": one, "path": None} for one in sounds], ENCODED), "label": labels, **columns}
    )


def spectrogram(encoded: bytes) -> torch.Tensor:
    return FRONT(*read_wav(encoded, "clip", seconds=1))


def test_parquet_recordings_are_parted_by_the_split_column(tmp_path):
    sounds = [clip(seed) for seed in range(4)]
    pq.write_table(table(sounds, [2, 0, 1, 0], split=["train", "test", "train", "test"]), tmp_path / "all.parquet")
    data = recordings(tmp_path, front=FRONT, name="four")
    assert data.name == "four"
    assert data.shape == (1, 7, 5)
    assert data.train[1].tolist() == [2, 1]
    assert data.test[1].tolist() == [0, 0]
    for part, rows in ((data.train, (0, 2)), (data.test, (1, 3))):
        assert torch.equal(part[0][:, 0], torch.stack([spectrogram(sounds[row]) for row in rows]))


def test_the_column_of_recordings_is_found_by_name_or_named(tmp_path):
    rows = table([clip(1)], [0]).append_column("cover", pa.array([b"picture"], pa.binary()))
    pq.write_table(rows, tmp_path / "train.parquet")
    pq.write_table(rows, tmp_path / "test.parquet")
    assert torch.equal(recordings(tmp_path, front=FRONT).train[0][0, 0], spectrogram(clip(1)))
    with pytest.raises(DataError, match="row 0 is no WAV file"):
        recordings(tmp_path, front=FRONT, audio="cover")
    vague = rows.rename_columns(["a", "label", "b"])
    pq.write_table(vague, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="2 columns that could be the audio.*audio="):
        recordings(tmp_path, front=FRONT)


def folders(root: Path, *places: str) -> list[bytes]:
    contents = [clip(seed, count=500 + seed) for seed in range(len(places))]
    for place, content in zip(places, contents, strict=True):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(content)
    return contents


def test_folders_named_train_and_test_are_read_in_sorted_order(tmp_path):
    yes, no, other, last = folders(
        tmp_path, "train/yes/b.wav", "train/no/a.wav", "train/yes/a.wav", "test/no/x.wav", "test/yes/x.wav"
    )[:4]
    data = recordings(tmp_path, front=FRONT)
    assert data.classes == ("no", "yes")
    assert data.train[1].tolist() == [0, 1, 1]
    assert torch.equal(data.train[0][:, 0], torch.stack([spectrogram(one) for one in (no, other, yes)]))
    assert torch.equal(data.test[0][0, 0], spectrogram(last))


def test_a_testing_list_parts_one_tree_of_folders(tmp_path):
    names = ["up/a.wav", "up/b.wav", "down/a.wav", "down/b.wav", "_background_noise_/hum.wav"]
    folders(tmp_path, *names)
    (tmp_path / "testing_list.txt").write_text("up/b.wav\ndown/b.wav\n")
    data = recordings(tmp_path, front=FRONT)
    assert data.classes == ("down", "up")
    assert data.train[1].tolist() == [0, 1] == data.test[1].tolist()
    assert torch.equal(data.test[0][1, 0], spectrogram(clip(1, count=501)))


@pytest.mark.parametrize(
    ("listed", "message"),
    [("", "wanted at least one"), ("up/b.wav\nup/none.wav\n../a.wav\n", "2 of them are not there")],
)
def test_a_testing_list_of_absent_files_is_refused(tmp_path, listed, message):
    folders(tmp_path, "up/a.wav", "up/b.wav")
    (tmp_path / "testing_list.txt").write_text(listed)
    with pytest.raises(DataError, match=message):
        recordings(tmp_path, front=FRONT)


def test_classes_that_differ_between_the_parts_are_refused(tmp_path):
    folders(tmp_path, "train/yes/a.wav", "train/no/a.wav", "test/yes/a.wav")
    with pytest.raises(DataError, match=r"different folders \(no\)"):
        recordings(tmp_path, front=FRONT)


def test_a_folder_without_recordings_is_answered_with_the_forms(tmp_path):
    with pytest.raises(DataError, match=r"wanted train/CLASS/\*\.wav"):
        recordings(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="has 0 files CLASS"):
        recordings(tmp_path)


def test_columns_are_for_parquet_only(tmp_path):
    folders(tmp_path, "train/a/a.wav", "test/a/a.wav")
    with pytest.raises(DataError, match="are for Parquet"):
        recordings(tmp_path, label="label")


BAD_ROWS = {
    "another rate": ([clip(0), clip(1, rate=16_000)], "row 1 has 16,000 samples per second, the first recording 8,000"),
    "no bytes": ([clip(0), None], "row 1 has no bytes; a path alone is not followed"),
    "no WAV": ([clip(0), b"ID3"], "row 1 is no WAV file"),
}


@pytest.mark.parametrize(("sounds", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused_with_their_number(tmp_path, sounds, message):
    pq.write_table(table(sounds, [0, 1], split=["train", "test"]), tmp_path / "all.parquet")
    with pytest.raises(DataError, match=message):
        recordings(tmp_path, front=FRONT)


def test_a_bad_label_is_refused(tmp_path):
    pq.write_table(table([clip(0)], [-1], split=["train"]), tmp_path / "all.parquet")
    with pytest.raises(DataError, match="row 0 has the label -1"):
        recordings(tmp_path, front=FRONT)


def test_levels_beyond_the_limit_are_refused_with_the_numbers(tmp_path):
    pq.write_table(table([clip(0)] * 3, [0] * 3, split=["train", "train", "test"]), tmp_path / "all.parquet")
    with pytest.raises(DataError, match=r"makes 420 bytes of levels, \(3, 1, 7, 5\).*give limit=420"):
        recordings(tmp_path, front=FRONT, limit=419)
    assert len(recordings(tmp_path, front=FRONT, limit=420).train[1]) == 2


def test_real_spoken_digits_are_read(stored, tmp_path):
    rows = pq.read_table(stored("spoken_digits/fsdd.parquet"))
    assert rows.num_rows == 3000
    some = {split: rows.filter(pa.compute.equal(rows["split"], split)).slice(0, 100) for split in ("train", "test")}
    pq.write_table(pa.concat_tables(list(some.values())), tmp_path / "all.parquet")
    data = load(f"audio:{tmp_path}")
    assert data.shape == (1, 61, 20)
    assert data.classes == tuple("0123456789")
    for (x, y), part in ((data.train, some["train"]), (data.test, some["test"])):
        assert y.tolist() == part["label"].to_pylist()
        with wave.open(io.BytesIO(part["audio"][99]["bytes"].as_py())) as file:
            samples = np.frombuffer(file.readframes(8000), "<i2") / 32768
        assert torch.allclose(x[99, 0], LogMel()(torch.from_numpy(samples).float(), 8000), atol=1e-6)

"""WAV files in folders named after their class."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from weightbank.errors import DataError

MAX_FILE = 2**26
"""The most bytes of one WAV file."""
MAX_FILES = 2**20
LIST = "testing_list.txt"


class Clip(NamedTuple):
    """One WAV file and the number of its class."""

    path: Path
    label: int

    def read(self) -> bytes:
        """Return the bytes of the file; DataError if there are more than 64 MiB."""
        with self.path.open("rb") as file:
            encoded = file.read(MAX_FILE + 1)
        if len(encoded) > MAX_FILE:
            raise DataError(f"{self.path} has more than {MAX_FILE:,} bytes; wanted a short recording")
        return encoded


class Clips(NamedTuple):
    """The files to train on, those to test on, and the class names in the order of their numbers."""

    train: list[Clip]
    test: list[Clip]
    classes: tuple[str, ...]


def clips(folder: Path) -> Clips | None:
    """List `train/CLASS/*.wav` and `test/CLASS/*.wav`, or `CLASS/*.wav` parted by `testing_list.txt`; None if neither.

    Such a list names the test files, one `CLASS/file.wav` a line, as Speech Commands has it (Warden 2018, arXiv
    1804.03209). Classes are the names of the folders in sorted order; `_background_noise_` and other folders that begin
    with `_` are left out. Files are listed in sorted order, so the same folder gives the same data everywhere.

    Raises:
        DataError: classes that differ between train and test, a listed file that is not there, no test file, or more
            than 2^20 files.
    """
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = _by_class(folder / "train"), _by_class(folder / "test")
        if train.keys() != test.keys():
            odd = ", ".join(sorted(train.keys() ^ test.keys())[:5])
            raise DataError(f"{folder}: train and test have different folders ({odd}); wanted the same classes in both")
        parts = [_labelled(part) for part in (train, test)]
    elif (folder / LIST).is_file():
        train = _by_class(folder)
        everything = _labelled(train)
        listed = _listed(folder, {clip.path for clip in everything})
        parts = [[clip for clip in everything if (clip.path in listed) is wanted] for wanted in (False, True)]
    else:
        return None
    return Clips(parts[0], parts[1], tuple(train))


def _by_class(folder: Path) -> dict[str, list[Path]]:
    names = sorted(place.name for place in folder.iterdir() if place.is_dir() and place.name[0] not in "_.")
    found = {name: sorted((folder / name).glob("*.wav")) for name in names}
    count = sum(len(files) for files in found.values())
    if not 0 < count <= MAX_FILES:
        raise DataError(f"{folder} has {count:,} files CLASS/*.wav; wanted 1 to {MAX_FILES:,}")
    return {name: files for name, files in found.items() if files}


def _labelled(classes: dict[str, list[Path]]) -> list[Clip]:
    return [Clip(path, label) for label, files in enumerate(classes.values()) for path in files]


def _listed(folder: Path, present: Iterable[Path]) -> set[Path]:
    with (folder / LIST).open(encoding="utf-8") as file:
        text = file.read(MAX_FILE)
    wanted = {folder / line.strip() for line in text.splitlines() if line.strip()}
    if not wanted or (absent := sorted(wanted - set(present))):
        which = f"{len(absent)} of them are not there, {absent[0]} first" if wanted else "wanted at least one"
        raise DataError(f"{folder / LIST} names {len(wanted):,} files; {which}")
    return wanted

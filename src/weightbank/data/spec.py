"""A data set named by one short text, as the command line takes it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from weightbank.data.audio import recordings
from weightbank.data.embedded import digits
from weightbank.data.huggingface import hub
from weightbank.data.idx import mnist_family
from weightbank.data.images import ImageData
from weightbank.data.parquet import parquet_images
from weightbank.errors import DataError

READERS: Mapping[str, Callable[[str], ImageData]] = MappingProxyType(
    {"mnist": mnist_family, "idx": mnist_family, "parquet": parquet_images, "audio": recordings, "hub": hub}
)

FORMS = (
    "digits (the 8x8 digits in scikit-learn), mnist:FOLDER or idx:FOLDER (the four IDX files), parquet:FOLDER "
    "(train.parquet and test.parquet, or one file with a split column), audio:FOLDER (WAV recordings, in Parquet or in "
    "folders train/CLASS and test/CLASS), hub:NAME (a data set of the Hugging Face Hub)"
)


def load(spec: str) -> ImageData:
    """Read the data set that `spec` names: `digits`, `mnist:FOLDER`, `parquet:FOLDER`, `audio:FOLDER` or `hub:NAME`.

    Raises:
        DataError: another spec, the message lists the forms; or what the reader raises.

    >>> load("digits")
    ImageData('digits', train=1297, test=500, shape=(1, 8, 8), classes=10)
    """
    if spec == "digits":
        return digits()
    kind, _, place = spec.partition(":")
    if kind not in READERS or not place:
        raise DataError(f"{spec!r} names no data; wanted one of {FORMS}")
    return READERS[kind](place)

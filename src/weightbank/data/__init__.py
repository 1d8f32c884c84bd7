"""Readers of standard files of images and sounds; all return `ImageData` with float32 values in [0, 1].

>>> digits()
ImageData('digits', train=1297, test=500, shape=(1, 8, 8), classes=10)
"""

from weightbank.data.audio import recordings
from weightbank.data.embedded import digits, photo_patches
from weightbank.data.huggingface import hub
from weightbank.data.idx import mnist_family, read_idx
from weightbank.data.images import ImageData, from_arrays
from weightbank.data.mel import LogMel
from weightbank.data.parquet import parquet_images
from weightbank.data.spec import load

__all__ = [
    "ImageData",
    "LogMel",
    "digits",
    "from_arrays",
    "hub",
    "load",
    "mnist_family",
    "parquet_images",
    "photo_patches",
    "read_idx",
    "recordings",
]

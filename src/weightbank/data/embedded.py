"""Data that come with scikit-learn, so that examples run without a download."""

import torch
from jaxtyping import Float
from torch import Tensor

from weightbank.data.extras import require
from weightbank.data.images import ImageData, from_arrays
from weightbank.errors import DataError

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


def digits(test_fraction: float = 500 / 1797) -> ImageData:
    """Return the 1,797 handwritten digits of scikit-learn, (N, 1, 8, 8), by default 1,297 to train and 500 to test.

    The rows are shuffled by a generator with seed 0, the first ones train; the same call returns the same split always.
    From the UCI archive: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998). Values 0..16, over 16.

    Raises:
        DataError: `test_fraction` leaves no row to train or none to test.
    """
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    count = len(labels)
    tests = round(test_fraction * count)
    if not 0 < tests < count:
        raise DataError(f"test_fraction={test_fraction} makes {tests} test rows of {count}; wanted 1 to {count - 1}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(values).to(torch.float32).div_(16).reshape(-1, 1, 8, 8)[order]
    y = torch.from_numpy(labels)[order]
    return from_arrays((x[:-tests], y[:-tests]), (x[-tests:], y[-tests:]), name="digits")


def photo_patches(
    count: int, size: int = 8, generator: torch.Generator | None = None
) -> Float[Tensor, "N 1 size size"]:
    """Return random grey squares of the two photographs in scikit-learn: inputs that are no digits, in [0, 1].

    Each patch is equally likely to start at any of the places it fits, in either photograph (427 x 640 pixels).

    Args:
        count: how many patches N.
        size: their height and width in pixels.
        generator: the source of the places; one with seed 0 by default.

    Raises:
        DataError: `count` or `size` is not positive, `size` is above 427, or Pillow is missing.
    """
    require("PIL", "decoding the photographs of scikit-learn")
    from sklearn.datasets import load_sample_images

    colour = torch.stack([torch.tensor(photo) for photo in load_sample_images().images])
    grey = (colour.to(torch.float32) @ torch.tensor(GREY)).div_(255).clamp_(0, 1)
    if count < 1 or not 1 <= size <= min(grey.shape[1:]):
        raise DataError(f"count={count}, size={size}; wanted at least 1 patch of 1 to {min(grey.shape[1:])} pixels")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    windows = grey.unfold(1, size, 1).unfold(2, size, 1)  # a view (photo, top, left, size, size)
    places = [torch.randint(length, (count,), generator=generator) for length in windows.shape[:3]]
    return windows[tuple(places)].unsqueeze(1)

import sys

import numpy as np
import pytest
import torch

from weightbank.data import digits, photo_patches
from weightbank.errors import DataError


def test_digits_split_is_the_same_each_time_whatever_the_global_seed():
    first = digits()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = digits()
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_digits_are_scikit_learns_rows_in_the_order_of_seed_zero():
    from sklearn.datasets import load_digits

    source = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0)).numpy()
    data = digits()
    assert (len(data.train[1]), len(data.test[1])) == (1297, 500)
    x, y = torch.cat([data.train[0], data.test[0]]), torch.cat([data.train[1], data.test[1]])
    assert np.array_equal(x[:, 0].numpy(), source.images[order] / 16)  # sixteenths are exact
    assert np.array_equal(y.numpy(), source.target[order])
    assert data.classes == tuple("0123456789")


def test_digits_split_is_frozen():
    assert digits().test[1][:10].tolist() == [3, 0, 7, 1, 3, 8, 3, 4, 1, 4]


def test_test_fraction_sets_the_number_of_test_rows():
    assert len(digits(0.1).test[1]) == 180


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0])
def test_a_part_without_rows_is_refused(fraction):
    with pytest.raises(DataError, match="wanted 1 to 1796"):
        digits(fraction)


def test_every_patch_is_a_square_of_a_photograph():
    from sklearn.datasets import load_sample_images

    # float32 against float64 luma: errors stay below 1e-6
    photos = [photo @ np.array([0.299, 0.587, 0.114]) / 255 for photo in load_sample_images().images]
    patches = photo_patches(20, size=5, generator=torch.Generator().manual_seed(1))
    assert patches.shape == (20, 1, 5, 5)
    sources = set()
    for patch in patches[:, 0].numpy():
        found = [
            number
            for number, photo in enumerate(photos)
            for top, left in np.argwhere(np.abs(photo[:-4, :-4] - patch[0, 0]) < 1e-6)
            if np.abs(photo[top : top + 5, left : left + 5] - patch).max() < 1e-6
        ]
        assert found
        sources.update(found)
    assert sources == {0, 1}


def test_patches_are_in_the_unit_interval_and_follow_the_generator():
    patches = photo_patches(500, generator=torch.Generator().manual_seed(2))
    assert patches.dtype == torch.float32
    assert patches.min() >= 0
    assert patches.max() <= 1
    assert torch.equal(patches, photo_patches(500, generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(patches, photo_patches(500, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(photo_patches(5), photo_patches(5))


def test_the_largest_patch_is_as_high_as_the_photographs():
    assert photo_patches(2, size=427).shape == (2, 1, 427, 427)
    with pytest.raises(DataError, match="1 to 427 pixels"):
        photo_patches(2, size=428)
    with pytest.raises(DataError, match="count=0"):
        photo_patches(0)


def test_missing_pillow_is_answered_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs pillow.*pip install weightbank\[hub\]"):
        photo_patches(1)


def test_no_network_is_asked(monkeypatch):
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(digits().classes) == 10
    assert len(photo_patches(1)) == 1

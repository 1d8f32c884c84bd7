import numpy as np
import pytest
import torch

from weightbank.data import ImageData, from_arrays
from weightbank.errors import DataError

X = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
Y = np.array([0, 1])


def test_uint8_pixels_become_the_float32_nearest_to_a_255th():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    data = from_arrays((every, Y[:1]), (every, Y[:1]))
    expected = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)
    assert np.array_equal(data.train[0].numpy().ravel(), expected)


def test_float_pixels_stay_as_they_are_and_where_they_are():
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    data = from_arrays((x, torch.tensor([1, 0])), (x.double(), torch.tensor([0, 0])))
    assert data.train[0].data_ptr() == x.data_ptr()
    assert torch.equal(data.test[0], x)
    assert data.shape == (3, 4, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i4", np.int64, np.uint64])
def test_labels_of_any_integer_type_become_int64(dtype):
    data = from_arrays((X, Y.astype(dtype)), (X, Y))
    assert data.train[1].dtype == torch.int64
    assert data.train[1].tolist() == [0, 1]


@pytest.mark.parametrize("change", [np.asfortranarray, lambda x: x[:, ::-1], lambda x: x.astype(">f8") / 255])
def test_any_memory_layout_gives_the_same_pixels(change):
    x = change(X)
    data = from_arrays((x, Y), (x, Y))
    assert np.allclose(data.train[0][:, 0].numpy() * 255, np.asarray(change(X), float) * (255 if x.max() <= 1 else 1))


def test_read_only_arrays_are_taken():
    x = np.frombuffer(X.tobytes(), np.uint8).reshape(X.shape)
    assert from_arrays((x, Y), (x, Y)).train[0].shape == (2, 1, 4, 4)


def test_classes_are_numbered_by_the_largest_label_of_both_parts():
    assert from_arrays((X, Y), (X, Y + 2)).classes == ("0", "1", "2", "3")
    assert from_arrays((X, Y), (X, Y), classes=["cat", "dog"]).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:1], Y, r"images of shape \(1, 1, 4, 4\) and labels of shape \(2,\)"),
        (X[:0], Y[:0], "N of at least 1"),
        (X[0], Y, r"wanted \(N, H, W\) or \(N, C, H, W\)"),
        (np.zeros((2, 32, 32, 3), np.uint8), Y, "channels last"),
        (X.astype(np.int64), Y, "wanted uint8 in 0 .. 255 or floating point"),
        (X.astype(np.float32), Y, "pixels go from 0 to 31"),
        (-X.astype(np.float32) / 255, Y, "pixels go from -0.12"),
        (np.where(X == 5, np.nan, X / 255), Y, "pixels go from nan"),
        (np.where(X == 5, np.inf, X / 255), Y, "to inf"),
        (X.astype("S1"), Y, "wanted numbers"),
        (X, Y.astype(float), "labels are torch.float64; wanted integers"),
        (X, Y == 1, "labels are torch.bool; wanted integers"),
        (X, Y[:, None], r"labels of shape \(2, 1\)"),
        (X, Y - 1, "labels go from -1 to 0"),
        (X, np.array([0, 2**40]), "no class names came"),
        (X, np.array([0, 2**64 - 1], np.uint64), "labels go from -1"),
    ],
)
def test_wrong_arrays_are_refused_in_either_part(x, y, message):
    with pytest.raises(DataError, match=message):
        from_arrays((x, y), (X, Y))
    with pytest.raises(DataError, match=message):
        from_arrays((X, Y), (x, y))


def test_a_label_without_a_class_name_is_refused():
    with pytest.raises(DataError, match="labels go from 0 to 1; wanted 0 to 0 for 1 classes"):
        from_arrays((X, Y), (X, Y), classes=["cat"])


def test_train_and_test_images_must_have_one_shape():
    with pytest.raises(DataError, match=r"\(1, 4, 4\) and test images \(1, 2, 4\)"):
        from_arrays((X, Y), (X[:, :2], Y))


def test_data_built_directly_are_checked_as_well():
    x, y = torch.zeros(1, 1, 2, 2), torch.tensor([3])
    with pytest.raises(DataError, match="labels go from 3 to 3"):
        ImageData("direct", (x, y), (x, y), ("only",))
    with pytest.raises(DataError, match="direct test: pixels go from 2 to 2"):
        ImageData("direct", (x, y - 3), (x + 2, y - 3), ("only",))

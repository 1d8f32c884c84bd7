import pytest

from weightbank.posterior.paper import PAPER_MODELS, PAPER_TARGETS, paper_bytes, paper_epochs, paper_table

# ((target - 12) / 12 n - 3) / 600 for 1, 10, 100, 300 and 700 GB, before the published table rounds it up.
UNROUNDED = {
    "model_2conv2fc": (6.354, 63.589, 635.933, 1907.809, 4451.562),
    "model_2fc": (0.170, 1.742, 17.465, 52.405, 122.286),
    "model_3fc": (0.103, 1.071, 10.757, 32.282, 75.331),
    "model_4fc": (0.045, 0.492, 4.961, 14.892, 34.754),
}
PUBLISHED = {
    "model_2conv2fc": (7, 64, 636, 1908, 4452),
    "model_2fc": (1, 2, 18, 53, 123),
    "model_3fc": (1, 2, 11, 33, 76),
    "model_4fc": (1, 1, 5, 15, 35),
}


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_all_cells_of_the_published_table(model: str) -> None:
    assert tuple(paper_table()[target][model] for target in PAPER_TARGETS) == PUBLISHED[model]


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_bytes_are_the_inverse_of_the_unrounded_epochs(model: str) -> None:
    n = PAPER_MODELS[model]
    for target, epochs in zip(PAPER_TARGETS, UNROUNDED[model], strict=True):
        low, high = (paper_bytes(n, round(600 * (epochs + shift))) for shift in (-0.002, 0.002))
        assert low <= target * 10**9 <= high  # three decimals are known: half a unit, and the rounding to whole rows


def test_epochs_are_the_least_that_reach_the_target() -> None:
    n = PAPER_MODELS["model_2fc"]
    epochs = paper_epochs(n, 700 * 10**9)
    assert paper_bytes(n, 600 * (epochs - 1)) < 700 * 10**9 <= paper_bytes(n, 600 * epochs)


def test_a_target_below_one_epoch_takes_one() -> None:
    assert paper_epochs(2_797_010, 1) == 1

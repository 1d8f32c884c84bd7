import pytest
import torch

from weightbank.cim import Device, Drift, Table, program
from weightbank.errors import DataError
from weightbank.layout import Entry, Layout

ONE = Layout((Entry("w", (1, 1), 0, torch.float32),))


@pytest.mark.parametrize(("cell_bits", "kappa"), [(1, 0.5773), (2, 0.2582), (4, 0.0626), (8, 0.0039)])
def test_a_weight_errs_by_the_published_share_of_its_scale(cell_bits, kappa):
    # std = sigma max|w| √Σ 4^(-i m), to the four digits published with the method
    chip = program(ONE, Device(8, cell_bits, sigma=0.1), theta=torch.tensor([-2.0]))
    assert float(chip.variance().sqrt()) == pytest.approx(0.1 * 2 * kappa, abs=0.1 * 2 * 5e-5)


def test_bits_that_do_not_divide_take_another_cell():
    assert Device(8, 3).cells == 3
    assert Device(8, 3).places == (1 / 8, 1 / 64, 1 / 512)


def test_scales_are_the_largest_weights_of_tensor_or_channel(layout, theta):
    tensor, channel = Device().scales(theta, layout), Device(scale="channel").scales(theta, layout)
    for name, params in layout.unravel(theta).items():
        place = layout.slice(name)
        if params.ndim < 2:
            assert (tensor[place] == 0).all()
            assert (channel[place] == 0).all()
        else:
            assert (tensor[place] == params.abs().max()).all()
            expected = torch.stack([torch.full_like(row, float(row.abs().max())) for row in params])
            assert torch.equal(channel[place], expected.flatten())


def test_a_rule_of_name_and_shape_says_what_is_on_the_device(layout):
    mask = Device(analog=lambda name, shape: name == "fc.weight").on_device(layout)
    assert mask.nonzero()[:, 0].tolist() == list(range(*layout.slice("fc.weight").indices(layout.size)))
    assert Device(analog="everything").on_device(layout).all()
    assert int(Device().on_device(layout).sum()) == 24 + 15


@pytest.mark.parametrize(
    "device",
    [
        Device(),
        Device(6, 2, sigma="pcm_joshi", verified_sigma=0.02, scale="channel", quantized=True, pairs=True),
        Device(sigma=Table((0.0, 1.0), (0.0, 0.1), (0.1, 0.2)), analog="everything", stuck_low=0.1, stuck_high=0.2),
        Device(read_noise=0.1, drift=Drift(100.0, exponent="pcm_aihwkit", compensated=True)),
    ],
)
def test_a_described_device_parses_to_itself(device):
    import json

    assert Device.parse(json.loads(json.dumps(device.describe()))) == device


def test_a_device_with_functions_cannot_be_stored():
    with pytest.raises(DataError, match="sigma is a function"):
        Device(sigma=lambda g: g).describe()


@pytest.mark.parametrize("garbage", [None, [], {"colour": 1}, {"sigma": {"kind": "none"}}, {"weight_bits": "many"}])
def test_garbage_is_no_device(garbage):
    with pytest.raises(DataError, match="stored device"):
        Device.parse(garbage)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"weight_bits": 0}, "weight_bits=0"),
        ({"weight_bits": 4, "cell_bits": 5}, "cell_bits=5"),
        ({"sigma": -0.1}, "sigma=-0.1"),
        ({"sigma": float("nan")}, "sigma=nan"),
        ({"sigma": "gold"}, "pcm_joshi"),
        ({"sigma": 0.01}, "make it worse"),
        ({"stuck_low": 0.6, "stuck_high": 0.6}, "at most 1"),
    ],
)
def test_impossible_devices_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        Device(**bad)

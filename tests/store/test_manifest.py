import pytest
import torch

from weightbank.errors import CorruptError
from weightbank.formats import BlockFloatingPoint, Native
from weightbank.layout import Entry, Layout
from weightbank.store.manifest import Manifest
from weightbank.store.segments import Geometry

LAYOUT = Layout((Entry("a.weight", (3, 4), 0, torch.float32), Entry("ü", (), 12, torch.bfloat16)))


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(13, Native("float32"), None, Geometry.of(52, None), LAYOUT, {"keep": "all"}),
        Manifest(2**40, BlockFloatingPoint(4, block=32), None, Geometry.of(17 * 2**35, None)),
        Manifest(13, Native("bfloat16"), 7, Geometry.of(26, 12), None, [1.5, None, "ü\n", {"a": []}]),
    ],
)
def test_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.dump(), "here") == manifest


def test_any_flipped_bit_is_noticed() -> None:
    """Or makes no difference: JSON can say the same in several ways."""
    manifest = Manifest(13, Native("float32"), None, Geometry.of(52, None), LAYOUT, {"keep": "all"})
    data, noticed = manifest.dump(), 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert Manifest.parse(bytes(damaged), "here") == manifest
        except CorruptError:
            noticed += 1
    assert noticed > 8 * len(data) * 0.8

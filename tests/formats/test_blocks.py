import math

import pytest
import torch

from weightbank.errors import FormatError
from weightbank.formats import BlockFloatingPoint, ByDimensions, Per, Tile
from weightbank.formats.blocks import tiling

BLOCKS = [
    None,
    1,
    3,
    64,
    Per(0),
    Per(1),
    Per(-1),
    Per(0, 1),
    Per(2, 0),
    Tile(0, 2),
    Tile(1, 3),
    Tile(-1, 4),
    Tile(2, 9),
]


def numbers(block, shape):
    """For every weight the number of its block, by the definition, one weight at a time."""
    ids = torch.empty(shape, dtype=torch.int64)
    names = {}
    for place in range(math.prod(shape)):
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape))
        if block is None:
            name = ()
        elif isinstance(block, Per):
            name = tuple(index[dim] for dim in block.dims)
        else:
            axis, size = (block.axis, block.size) if isinstance(block, Tile) else (-1, block)
            axis %= len(shape)
            name = (*index[:axis], *index[axis + 1 :], index[axis] // size)
        ids[index] = names.setdefault(name, len(names))
    return ids, len(names)


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
@pytest.mark.parametrize("shape", [(4, 3, 5), (2, 7, 9), (1, 1, 1)], ids=str)
def test_blocks_are_those_of_the_definition(block, shape):
    ids, count = numbers(block, shape)
    cut = tiling(block, shape)
    assert cut.blocks == count
    parts = cut.split(ids + 1)  # 0 is padding
    for part in parts:
        assert len(set(part.tolist()) - {0}) == 1
    assert len({max(part.tolist()) for part in parts}) == count


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_joining_inverts_splitting(block):
    for shape in ((4, 3, 5), (2, 7, 9), (3, 0, 2), (0, 1, 1)):
        x = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
        cut = tiling(block, shape)
        assert torch.equal(cut.join(cut.split(x), shape), x)
        assert len(cut.split(x)) == cut.blocks


@pytest.mark.parametrize("block", BLOCKS, ids=repr)
def test_every_block_is_rounded_as_if_alone(block):
    shape = (4, 3, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 8.0, 64.0])[:, None]
    quantized = BlockFloatingPoint(6, block).quantize(x)
    ids, count = numbers(block, shape)
    for number in range(count):
        assert torch.equal(quantized[ids == number], BlockFloatingPoint(6).quantize(x[ids == number]))


def test_by_dimensions_is_the_published_small_block_rule():
    generator = torch.Generator().manual_seed(0)
    small, vectors = BlockFloatingPoint(8, ByDimensions()), BlockFloatingPoint(8, ByDimensions(2, Per(0, 1)))
    for shape in ((), (7,), (4, 3), (4, 3, 2, 2)):
        x = torch.randn(shape, generator=generator)
        per_channel = BlockFloatingPoint(8, Per(0) if len(shape) > 1 else None)
        assert torch.equal(small.quantize(x), per_channel.quantize(x))
        per_kernel = BlockFloatingPoint(8, Per(0, 1) if len(shape) > 2 else None)
        assert torch.equal(vectors.quantize(x), per_kernel.quantize(x))


def test_one_exponent_per_output_channel():
    packed = BlockFloatingPoint(8, Per(0)).pack(torch.tensor([[1.0, 0.5], [4.0, 0.1], [0.0, 0.0]]))
    assert packed.scales.tolist() == [0, 2, -128]


def test_tiles_of_the_last_axis_are_their_number():
    assert BlockFloatingPoint(8, Tile(-1, 32)) == BlockFloatingPoint(8, 32)
    assert repr(BlockFloatingPoint(8, Tile(-1, 32))) == "BlockFloatingPoint(8, block=32)"


def test_blocks_are_values():
    assert len({Per(0), Per(0), Per(1), Tile(0, 2), Tile(0, 2), ByDimensions(), ByDimensions(1, Per(0))}) == 4
    assert [repr(block) for block in (Per(0, 1), Tile(0, 2), ByDimensions(), ByDimensions(2, Tile(-1, 8)))] == [
        "Per(0, 1)",
        "Tile(0, 2)",
        "ByDimensions()",
        "ByDimensions(2, others=Tile(-1, 8))",
    ]


def test_a_tensor_without_dimensions_is_one_block():
    x = torch.tensor(0.3)
    for block in (Per(0), Per(3), Tile(1, 4), ByDimensions()):
        assert BlockFloatingPoint(8, block).quantize(x) == BlockFloatingPoint(8).quantize(x)


def test_missing_dimensions_are_named():
    with pytest.raises(FormatError, match=r"Per\(0, 1\) needs dimension 1, but the tensor is \(3,\); use ByDimensions"):
        BlockFloatingPoint(8, Per(0, 1)).quantize(torch.ones(3))
    with pytest.raises(FormatError, match=r"Tile\(-2, 4\) needs dimension -2, but the tensor is \(3,\)"):
        BlockFloatingPoint(8, Tile(-2, 4)).quantize(torch.ones(3))


@pytest.mark.parametrize(
    "make",
    [Per, lambda: Per(0, 0), lambda: Per(True), lambda: Tile(0, 0), lambda: Tile(99, 4), lambda: ByDimensions(-1)],
)
def test_blocks_which_are_none_are_refused(make):
    with pytest.raises(FormatError, match="use a whole number|needs at least one dimension, none twice"):
        make()

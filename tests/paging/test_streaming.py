import copy
import pickle
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pooled
import weightbank as wb
from weightbank.data import digits
from weightbank.errors import LayoutError
from weightbank.formats import format_of
from weightbank.paging import Extent, Placement, Pool
from weightbank.paging.owner import Owner
from weightbank.paging.streaming import Streamed, read, streamed

INPUTS = digits().test[0][:64]
FORMATS = ("fp32", "bf16", "bfp8", "bfp4", "mxfp6_e3m2", "fp8_e4m3")


def outputs(pool: Pool, name: str, x: Tensor) -> Tensor:
    with torch.no_grad(), pool.use(name) as net:
        return net(x)


@pytest.mark.parametrize("placement", ["extents", "pages"])
@pytest.mark.parametrize("format", FORMATS)
def test_networks_answer_as_those_with_a_copy_of_their_weights(format: str, placement: str) -> None:
    """Bit for bit, although no weight is kept; parameters and state_dict give the values, too."""
    pool = pooled.filled(dtype=format, placement=placement, page_size=100)
    for task in pooled.tasks():
        tenant = pool.generation.tenant(task.name)
        theta = pool[task.name].mean()
        assert torch.equal(
            outputs(pool, task.name, INPUTS), task.predict(theta, INPUTS, buffers=dict(tenant.rest)).detach()
        )
        with pool.use(task.name) as net:
            assert torch.equal(task.layout.ravel(net), theta)
            assert all(torch.equal(value, pool.materialise(task.name)[key]) for key, value in net.state_dict().items())
            views = format == "fp32" and placement == "extents"
            assert views != any(isinstance(module._parameters, Streamed) for module in net.modules())
    assert pool.report().bytes_staged == 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_tensor_is_read_from_extents_and_pages_wherever_they_begin(format: str) -> None:
    """Against an index of every position: ragged extents, pages of 13 that straddle tiles, a last page half used."""
    generator = torch.Generator().manual_seed(0)
    chosen = format_of(format)
    owner = Owner.of(torch.randn(1_000, generator=generator), chosen)
    extents = (Extent(0, 700, 50), Extent(80, 3, 77), Extent(300, 901, 99))
    pages = torch.randperm(50, generator=generator)[: -(-(500 - 50 - 77 - 99) // 13)]
    placement = Placement(500, extents, 13, pages, torch.zeros(len(pages), dtype=torch.bool))
    theta = placement.gather(owner.values())
    for start, size in (
        (0, 500),
        (0, 50),
        (10, 30),
        (49, 2),
        (50, 30),
        (60, 60),
        (79, 300),
        (157, 143),
        (399, 101),
        (499, 1),
    ):
        entry = wb.layout.Entry("any", (size,), start, torch.float32)
        assert torch.equal(read(owner, placement, entry), theta[start : start + size])
        half = replace(entry, dtype=torch.bfloat16)
        assert torch.equal(read(owner, placement, half), theta[start : start + size].bfloat16())


class Sequence(nn.Module):
    """Recurrent layers, tied weights, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = nn.LSTM(8, 8, num_layers=2, batch_first=True, bidirectional=False)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embed.weight
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found, _ = self.rnn(self.embed(x))
        return self.head(self.attention(found))


@pytest.mark.parametrize("format", ["bfp8", "fp32"])
def test_recurrent_attention_and_tied_layers(format: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sequence().eval()
    x = torch.arange(24).view(4, 6) % 20
    task = wb.Task("sequence", model, lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()), (x, x), (x, x))
    pool = Pool(task.layout.size + 128, dtype=format)
    pool.add(task, importance=torch.ones(task.layout.size), placement="pages")
    assert not pool.generation.zero_copy("sequence")
    with torch.no_grad():
        theta = pool["sequence"].mean()
        torch.testing.assert_close(outputs(pool, "sequence", x), task.predict(theta, x), rtol=1e-5, atol=1e-6)
    with pool.use("sequence") as net:
        assert next(net.parameters()).device.type == "cpu"
        assert {name for name, _ in net.named_parameters()} >= set(task.layout.names)
        assert torch.equal(net.state_dict()["head.weight"], net.state_dict()["embed.weight"])


def test_a_copy_is_an_ordinary_network_and_the_served_one_cannot_be_changed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sequence().eval()
    x = torch.arange(24).view(4, 6) % 20
    task = wb.Task("sequence", model, lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()), (x, x), (x, x))
    pool = Pool(task.layout.size + 128, dtype="bfp8")
    pool.add(task, importance=torch.ones(task.layout.size))
    with torch.no_grad(), pool.use("sequence") as net:
        before = net(x)
        own = copy.deepcopy(net)
        assert own.head.weight is own.embed.weight
        assert own.head.weight.data_ptr() == own.embed.weight.data_ptr()
        own.embed.weight.zero_()
        assert not torch.equal(own(x), before)
        assert torch.equal(net(x), before)
        with pytest.raises(LayoutError, match="'weight' belongs to a pool and cannot be replaced"):
            net.embed.weight = nn.Parameter(torch.zeros(20, 8))
        with pytest.raises(LayoutError, match="belongs to a pool"):
            torch.func.functional_call(net, {"embed.weight": torch.zeros(20, 8)}, (x,))
        assert torch.equal(net(x), before)
        stored = pickle.loads(pickle.dumps(net.head))
        assert torch.equal(stored.weight, net.head.weight)
        assert type(stored._parameters) is dict


class Kept(nn.Module):
    """A parameter in a list of one's own, which no look-up by name reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.all = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.all[0]


def test_models_that_keep_parameters_elsewhere_are_gathered_instead() -> None:
    x = torch.ones(3, 4)
    task = wb.Task("kept", Kept(), F.mse_loss, (x, x), (x, x))
    pool = Pool(64, dtype="bfp8")
    pool.add(task, importance=torch.ones(4))
    assert streamed(pool.generation.tenant("kept"), pool.generation.owner) is None
    assert torch.equal(outputs(pool, "kept", x), x)
    assert pool.report().bytes_staged == 0


def test_threads_share_a_module() -> None:
    pool = pooled.filled(dtype="bfp8", placement="pages")
    expected = {name: outputs(pool, name, INPUTS) for name in pool}
    wrong: list[str] = []

    def run(name: str) -> None:
        for _ in range(20):
            if not torch.equal(outputs(pool, name, INPUTS), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in [*pool, *pool]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong

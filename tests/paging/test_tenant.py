import pytest
import torch
from torch import nn

import pooled
import weightbank as wb
from weightbank.errors import LayoutError
from weightbank.layout import Layout, within
from weightbank.paging import Pool, TenantLaw
from weightbank.paging.tenant import assemble, keys_of, rest_of, skeleton_of


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder, with a buffer that its state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)
        self.same = [self.encoder.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.relu(self.encoder(x))) * self.scale + self.same[0][0]


def test_a_skeleton_has_no_numbers_and_is_filled_without_a_copy() -> None:
    model = Tied()
    skeleton = skeleton_of(model)
    assert all(tensor.is_meta for tensor in [*skeleton.parameters(), *skeleton.buffers()])
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    net = assemble(skeleton, {name: tensor.detach() for name, tensor in tensors.items()})
    assert isinstance(net, Tied)
    assert net.encoder.weight.data_ptr() == model.encoder.weight.data_ptr() == net.decoder.weight.data_ptr()
    assert net.encoder.weight is net.decoder.weight is net.same[0]
    assert net.scale.data_ptr() == model.scale.data_ptr()
    x = torch.randn(3, 6)
    assert torch.equal(net(x), model(x))


def test_tied_weights_take_their_positions_once_and_come_back_under_all_names() -> None:
    model = Tied()
    x = torch.randn(20, 6)
    task = wb.Task("auto", model, nn.functional.mse_loss, (x, x), (x, x))
    pool = Pool(64)
    pool.add(task)
    assert pool.report().weights == 36 + 6 + 6
    state = pool.materialise("auto")
    assert set(state) == set(model.state_dict())
    other = Tied()
    other.load_state_dict(state)
    assert torch.equal(other(x), model(x))
    with pool.use("auto") as net:
        assert torch.equal(net(x), model(x))


def test_weights_outside_the_layout_and_buffers_stay_as_they_are() -> None:
    task = pooled.tasks()[2]
    head = wb.Task("head", task.model, task.loss, task.train, task.test, where=within("7"))
    rest = rest_of(head.model, head.layout)
    assert head.layout.names == ("7.weight", "7.bias")
    assert set(rest) == set(task.model.state_dict()) - {"7.weight", "7.bias"}
    pool = Pool(head.layout.size, dtype="bf16")
    pool.add(head)
    state, own = pool.materialise("head"), task.model.state_dict()
    for name, value in own.items():
        rounded = value.bfloat16().float() if name.startswith("7") else value
        assert torch.equal(state[name], rounded)


def test_the_keys_are_those_of_the_state_dict_in_its_order() -> None:
    model = Tied()
    assert keys_of(model) == {
        "encoder.weight": "encoder.weight",
        "encoder.bias": "encoder.bias",
        "decoder.weight": "encoder.weight",
        "decoder.bias": "decoder.bias",
    }
    assert list(keys_of(pooled.tasks()[2].model)) == list(pooled.tasks()[2].model.state_dict())


def test_a_tenant_is_a_law_that_the_library_evaluates() -> None:
    task = pooled.tasks()[0]
    pool = Pool(task.layout.size)
    pool.add(task)
    law = pool["one"]
    assert isinstance(law, wb.WeightDistribution)
    assert isinstance(law, TenantLaw)
    assert law.layout == Layout.of(task.model)
    assert torch.equal(law.mean(), task.theta())
    assert torch.equal(law.sample(3), task.theta().expand(3, -1))
    assert torch.equal(torch.stack(list(law.draws(2))), law.sample(2))
    assert not law.variance().any()
    assert wb.evaluate(task, law, 2).accuracy.mean == wb.evaluate(task, task.theta()).accuracy.mean
    chip = wb.program(task, wb.Device(weight_bits=8, cell_bits=2, sigma=0.1), theta=law.mean())
    assert chip.layout == law.layout


def test_a_model_with_a_computed_tensor_as_an_attribute_is_refused_with_advice() -> None:
    class Computed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = super().forward(x)
            return self.last

    model = Computed(3, 2)
    model(torch.ones(1, 3))
    x = torch.randn(20, 3)
    task = wb.Task("computed", model, nn.functional.mse_loss, (x, x[:, :2]), (x, x[:, :2]))
    pool = Pool(64)
    with pytest.raises(LayoutError, match="build the model anew"):
        pool.add(task, importance=torch.ones(8))
    assert len(pool) == 0

"""What falls out of one core: posteriors in few bits, on chips, in pools, and what each decides for another.

python examples/mixes.py
"""

import copy

import torch
import torch.nn.functional as F

import weightbank as wb
from weightbank.budget import expected_increase, measured_increase
from weightbank.cim import Cells, compare
from weightbank.data import digits
from weightbank.zoo import mlp

DEVICE = wb.Device(weight_bits=8, cell_bits=1, sigma=0.6, verified_sigma=0.03)


def main() -> None:
    torch.set_num_threads(1)
    posterior = rows_in_few_bits()
    variance_decides(*posterior)
    low_precision_on_a_chip()
    pool_on_a_chip()


def network(seed: int, *sizes: int) -> wb.Task:
    """A network of the embedded digits, trained."""
    torch.manual_seed(seed)
    data = digits()
    test = wb.TensorBatches(*data.test, 25)  # each mini-batch meets a chip of its own: 20 a pass
    task = wb.Task(f"network {seed}", mlp(*sizes), F.cross_entropy, data.train, test, batch_size=32)
    for _ in wb.epochs(task, torch.optim.Adam(task.model.parameters(), 3e-3), count=8):
        pass
    return task


def recorded(task: wb.Task, format: str) -> wb.Moments:
    """Ten epochs of a copy of the network at a constant rate, every fourth iterate a row in `format`."""
    copied = wb.Task(task.name, copy.deepcopy(task.model), F.cross_entropy, digits().train, digits().test, batch_size=32)
    moments = wb.Moments(task.layout, rows=wb.RowLog(":memory:", format=format))

    def every_fourth(theta: torch.Tensor, *, step: int) -> None:
        if step % 4 == 0:
            moments.update(theta, step=step)

    optimizer = torch.optim.SGD(copied.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in wb.epochs(copied, optimizer, count=10, each_step=every_fourth):
        pass
    return moments


def rows_in_few_bits() -> tuple[wb.Task, torch.Tensor]:
    """The same run recorded in rows of 32, 8 and 4 bits: what the posterior is worth, and what it takes."""
    task = network(0, 64, 32, 10)
    print("a posterior in few bits")
    for format in ("fp32", "bfp8", "bfp4"):
        moments = recorded(task, format)
        found = wb.evaluate(task, moments.gaussian(), samples=20)
        bytes = moments.count * moments.rows.format.row_bytes(task.layout.size)
        print(f"  {format}: {bytes / 1e3:6.0f} kB of rows, accuracy {found.accuracy.text}, nll {found.nll.text}")
    return task, moments.gaussian().variance()


def variance_decides(task: wb.Task, variance: torch.Tensor) -> None:
    """A weight that wanders is one the loss does not feel: 1 / variance ranks writes, and weighs shared pages."""
    cells = Cells.of(task, DEVICE)
    random = torch.randperm(task.layout.size, generator=torch.Generator().manual_seed(0))
    worth = wb.rank(cells.scale.square() / variance)
    chips = {
        name: wb.program(task, DEVICE, wb.select(order, 0.2, among=cells.on_device))
        for name, order in {"random": random, "1 / variance": worth}.items()
    }
    found = compare(task, chips, passes=3)
    print("a chip with a fifth of its weights verified")
    for name, accuracy in found.accuracy.items():
        print(f"  chosen by {name}: accuracy {accuracy.text}")

    print("three networks in one memory, before any tuning")
    tasks = [task, network(1, 64, 32, 10), network(2, 64, 32, 10)]
    for name, importance in {"equal": torch.ones_like(variance), "1 / variance": 1 / variance}.items():
        pool = wb.Pool(capacity=5_000)
        for each in tasks:
            pool.add(each, importance=importance if each is task else None, placement="pages", page_size=16)
        rise = measured_increase(task, pool[task.name], 1)
        print(f"  importance {name}: the loss of {task.name} rises by {rise.mean:.3f}")


def low_precision_on_a_chip() -> None:
    """Training in 8 bits (SWALP) ends on averaged weights, which then go to a noisy device."""
    torch.manual_seed(3)
    data = digits()
    test = wb.TensorBatches(*data.test, 25)
    task = wb.Task("in 8 bits", mlp(64, 32, 10), F.cross_entropy, data.train, test, batch_size=32)
    average = wb.Moments(task.layout, variance=False)
    with wb.Precision.swalp(bits=8).attached(task.model) as attached:
        optimizer = attached.optimizer(torch.optim.SGD(task.model.parameters(), lr=0.05, momentum=0.9))
        for epoch in wb.epochs(task, optimizer, count=14):
            if epoch >= 7:
                average.update(task.theta())
    theta = average.mean()
    task.layout.load(task.model, theta)
    h = wb.curvature.ggn_sampled(task)
    order = wb.rank(wb.cim.benefit(h, Cells.of(task, DEVICE)))
    print(f"trained in 8 bits, accuracy {wb.evaluate(task, theta).accuracy.text}; programmed")
    for share in (0.0, 0.1, 1.0):
        chip = wb.program(task, DEVICE, wb.select(order, share, among=DEVICE.on_device(task.layout)))
        accuracy = wb.cim.mean_over_chips(task, chip, passes=2)
        predicted = expected_increase(h, chip)
        print(f"  {share:4.0%} verified: accuracy {accuracy.text}, expected increase of the loss {predicted:.3f}")


def pool_on_a_chip() -> None:
    """Three networks share one memory; that memory is the device, and what they share is verified once for all."""
    tasks = [network(seed, *sizes) for seed, sizes in enumerate([(64, 48, 10), (64, 40, 24, 10), (64, 32, 32, 10)])]
    pool = wb.Pool(capacity=5_200)
    for task in tasks:
        pool.add(task)
    wb.tune(pool, tasks, steps=300, lr=3e-3)


if __name__ == "__main__":
    main()

"""What falls out of one core: posteriors in few bits, on chips, in pools, and what each decides for another.

python examples/mixes.py
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

import weightbank as wb
from weightbank.budget import expected_increase, measured_increase
from weightbank.cim import Cells, compare
from weightbank.data import digits
from weightbank.paging.through import Through, memory_layout, memory_of
from weightbank.zoo import mlp

DEVICE = wb.Device(weight_bits=8, cell_bits=1, sigma=0.6, verified_sigma=0.03)


def main() -> None:
    torch.set_num_threads(1)
    task = network(0, 64, 32, 10)
    rows_in_few_bits(task)
    variance_decides(task)
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


def recorded(task: wb.Task, optimizer: Callable[..., torch.optim.Optimizer], format: str = "fp32") -> wb.Moments:
    """Twelve more epochs of a copy of the network, every fourth iterate of the last ten a row in `format`."""
    model = copy.deepcopy(task.model)
    copied = wb.Task(task.name, model, F.cross_entropy, digits().train, digits().test, batch_size=32)
    moments = wb.Moments(task.layout, rows=wb.RowLog(":memory:", format=format))

    def take(theta: torch.Tensor, *, step: int) -> None:
        if step > 80 and step % 4 == 0:
            moments.update(theta, step=step)

    for _ in wb.epochs(copied, optimizer(model.parameters()), count=12, each_step=take):
        pass
    return moments


def rows_in_few_bits(task: wb.Task) -> None:
    """The same run recorded in rows of 32, 8 and 4 bits: what the posterior is worth, and what it takes."""
    print("a posterior in few bits")
    for format in ("fp32", "bfp8", "bfp4"):
        moments = recorded(task, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3), format)
        found = wb.evaluate(task, moments.gaussian(), samples=20)
        bytes = moments.count * moments.rows.format.row_bytes(task.layout.size)
        print(f"  {format}: {bytes / 1e3:6.0f} kB of rows, accuracy {found.accuracy.text}, nll {found.nll.text}")


def variance_decides(task: wb.Task) -> None:
    """Variance of iterates as a ranking for write-verify, and as the importance of pages.

    Which way round is the optimizer's affair. Adam walks equally far wherever there is a gradient, and farther where
    nothing pulls back: what varies little matters, 1 / variance. Plain SGD walks where gradients are, which is where
    the loss is curved: what varies much matters, until it has mixed. Weights that never move have no say.
    """
    cells = Cells.of(task, DEVICE)
    orders = {
        "random": torch.randperm(task.layout.size, generator=torch.Generator().manual_seed(0)),
        "1 / variance of Adam": wb.rank(narrow(task)),
        "variance of SGD": wb.rank(walked(task)),
        "curvature": wb.rank(wb.curvature.ggn_sampled(task)),
    }
    chips = {
        name: wb.program(task, DEVICE, wb.select(order, 0.2, among=cells.on_device)) for name, order in orders.items()
    }
    print("a chip with a fifth of its weights verified, chosen by")
    for name, accuracy in compare(task, chips, passes=3).accuracy.items():
        print(f"  {name:20}  accuracy {accuracy.text}")

    print("two networks in the memory of one and a half, before any tuning, pages chosen by")
    tasks = [task, network(1, 64, 32, 10)]
    ways = {
        "nothing": even,
        "1 / variance of Adam": narrow,
        "variance of SGD": walked,
        "curvature": wb.curvature.ggn_sampled,
    }
    for name, how in ways.items():
        pool = wb.Pool(capacity=3_600)
        for each in tasks:
            pool.add(each, importance=how(each), placement="pages", page_size=16)
        rises = [measured_increase(each, pool[each.name], 1).mean for each in tasks]
        print(f"  {name:20}  the losses rise by {sum(rises):.3f}")


def narrow(task: wb.Task) -> torch.Tensor:
    """1 / variance of iterates of Adam; 0 for weights that do not move."""
    variance = recorded(task, partial(torch.optim.Adam, lr=3e-3, betas=(0.9, 0.99))).variance()
    return torch.where(variance > 1e-3 * variance.median(), 1 / variance, 0.0)


def walked(task: wb.Task) -> torch.Tensor:
    """The variance of iterates of plain SGD."""
    return recorded(task, partial(torch.optim.SGD, lr=0.02)).variance()


def even(task: wb.Task) -> torch.Tensor:
    """Every weight counts the same."""
    return torch.ones(task.layout.size)


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
    task.layout.assign(task.model, theta)
    h = wb.curvature.ggn_sampled(task)
    order = wb.rank(wb.cim.benefit(h, Cells.of(task, DEVICE)))
    print(f"trained in 8 bits, accuracy {wb.evaluate(task, theta).accuracy.text}; programmed")
    for share in (0.0, 0.1, 1.0):
        chip = wb.program(task, DEVICE, wb.select(order, share, among=DEVICE.on_device(task.layout)))
        accuracy = wb.cim.mean_over_chips(task, chip, passes=2)
        predicted = expected_increase(h, chip)
        print(f"  {share:4.0%} verified: accuracy {accuracy.text}, expected increase of the loss {predicted:.3f}")


def pool_on_a_chip() -> None:
    """Three networks share one memory; the memory is the device, and what they share is verified once for all."""
    tasks = [network(seed, *sizes) for seed, sizes in enumerate([(64, 48, 10), (64, 40, 24, 10), (64, 32, 32, 10)])]
    pool = wb.Pool(capacity=6_400)
    for task in tasks:
        pool.add(task)
    wb.tune(pool, tasks, steps=300, lr=3e-3)
    for task in tasks:
        task.layout.assign(task.model, pool[task.name].mean())
    h = memory_of(pool, {task.name: wb.curvature.ggn_sampled(task) for task in tasks})
    device = wb.Device(sigma=0.3, verified_sigma=0.03, scale="channel")
    cells = Cells.of(memory_layout(pool), device, memory_of(pool))
    print(f"{sum(task.layout.size for task in tasks):,} weights in {pool.size:,} positions of one device")
    for share in (0.0, 0.1, 1.0):
        chip = wb.Chip(cells, wb.select(wb.cim.benefit(h, cells), share, among=cells.on_device))
        print(f"  {share:4.0%} verified: accuracy " + accuracies(pool, tasks, chip))

    memory = torch.nn.Parameter(memory_of(pool))
    moments = wb.Moments(memory_layout(pool), rows=wb.RowLog(":memory:", format="bfp8"))
    optimizer = torch.optim.SGD([memory], lr=0.02, momentum=0.9)
    for step, batches in enumerate(zip(*(task.batches() for _ in range(4) for task in tasks), strict=True)):
        optimizer.zero_grad()
        for task, (x, y) in zip(tasks * 4, batches, strict=True):
            theta = pool.generation.tenant(task.name).placement.gather(memory)
            (F.cross_entropy(task.predict(theta, x), y) / 4).backward()
        optimizer.step()
        if step % 2:
            moments.update(memory.detach())
    print(f"a posterior of the memory, {moments.count} rows of {pool.size:,} numbers for all three:")
    print("  accuracy " + accuracies(pool, tasks, moments.gaussian()))


def accuracies(pool: wb.Pool, tasks: list[wb.Task], law: wb.WeightDistribution) -> str:
    """Of each network where the memory follows `law`, the predictions of single draws."""
    found = []
    for task in tasks:
        seen = Through(pool.generation.tenant(task.name), law)
        found.append(f"{wb.evaluate(task, seen, samples=20).draws['accuracy'].mean:.3f}")
    return ", ".join(found)


if __name__ == "__main__":
    main()

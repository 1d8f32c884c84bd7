"""Job 2: your network on a noisy chip, with the few exact writes that keep its accuracy.

python examples/noisy_chip.py
"""

import torch
import torch.nn.functional as F

import weightbank as wb
from weightbank.cim import Cells, by_cell, by_weight, each_chip, graded, sweep
from weightbank.curvature import ggn_sampled, magnitude
from weightbank.data import digits
from weightbank.zoo import small_cnn


def main() -> None:
    torch.manual_seed(0)
    data = digits()
    test = wb.TensorBatches(*data.test, 25)  # each mini-batch meets a chip of its own: 20 a pass
    task = wb.Task("digits", small_cnn(1, 8), F.cross_entropy, data.train, test, batch_size=32)
    for _ in wb.epochs(task, torch.optim.Adam(task.model.parameters(), 3e-3), count=3):
        pass

    device = wb.Device(weight_bits=8, cell_bits=1, sigma=0.5, verified_sigma=0.03)
    h = ggn_sampled(task)  # how much each weight matters: one pass over some training data
    cells = Cells.of(task, device)
    ways = {
        "magnitude": by_weight(cells, wb.rank(magnitude(task, relative=True))),
        "weights": by_weight(cells, h),
        "cells": by_cell(cells, h),
        "graded": graded(cells, h),
    }
    found = sweep(task, ways, (0.0, 0.01, 0.1, 1.0), chips=40)
    print(f"accuracy with exact weights: {found.clean:.3f}; on chips, by write cycles spent:")
    for row in found.rows:
        print(f"  {row.write_cycles:7.2%}  {row.method:10} {row.accuracy}")

    plan = wb.write_verify(task, device, h, max_drop=0.01, policy=by_cell, step=0.01)
    print(plan)
    later = each_chip(task, plan.apply(task), 20, generator=torch.Generator().manual_seed(7))
    print(f"20 later chips: {later}, the worst {later.min:.3f}")


if __name__ == "__main__":
    main()

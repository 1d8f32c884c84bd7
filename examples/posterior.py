"""Job 1: a posterior of every training iterate on disk, in your own training loop.

python examples/posterior.py
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import weightbank as wb
from weightbank.data import digits, photo_patches
from weightbank.zoo import mlp


def main() -> None:
    torch.manual_seed(0)
    data = digits()
    task = wb.Task("digits", mlp(64, 32, 10), F.cross_entropy, data.train, data.test, batch_size=32)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    with tempfile.TemporaryDirectory() as folder:
        moments = wb.Moments(task.layout, rows=wb.RowLog(Path(folder) / "posterior", format="bf16"))
        for epoch in range(20):
            for x, y in task.batches("train"):
                optimizer.zero_grad()
                task.loss(task.model(x), y).backward()
                optimizer.step()
                if epoch >= 8:  # after the first descent
                    moments.update(task.theta())  # one row on disk

        print(moments)
        patches = photo_patches(500)
        print(wb.evaluate(task, task.theta(), ood=patches))
        print(wb.evaluate(task, moments.gaussian(), samples=30, ood=patches))
        moments.close()


if __name__ == "__main__":
    main()

"""Job 4: several networks in one small memory, tuned together, served without loading.

python examples/pool.py
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import weightbank as wb
from weightbank.data import digits
from weightbank.zoo import mlp


def main() -> None:
    torch.set_num_threads(1)
    data = digits()
    tasks = []
    for seed, sizes in enumerate([(64, 48, 10), (64, 40, 24, 10), (64, 32, 32, 10)]):
        torch.manual_seed(seed)
        task = wb.Task(f"network {seed}", mlp(*sizes), F.cross_entropy, data.train, data.test, batch_size=64)
        for _ in wb.epochs(task, torch.optim.Adam(task.model.parameters(), lr=3e-3), count=8):
            pass
        tasks.append(task)

    pool = wb.Pool(capacity="18 kB")  # 4,500 positions for 10,910 weights
    for task in tasks:
        pool.add(task)
    print(wb.tune(pool, tasks, steps=300, lr=3e-3))
    print(pool.report())

    with tempfile.TemporaryDirectory() as folder:
        pool.save(Path(folder) / "device.safetensors")
        served = wb.Pool.open(Path(folder) / "device.safetensors", models={task.name: task.model for task in tasks})
        x, y = data.test
        for task in tasks:
            alone = wb.evaluate(task, task.theta()).accuracy
            with served.use(task.name) as net:  # no load, no copy: its parameters are views of the mapped file
                shared = float((net(x).argmax(1) == y).float().mean())
            print(f"{task.name}: {task.layout.size:,} weights, alone {alone.text}, in the pool {shared:.3f}")

    print(wb.convert(pool, "bfp4", tasks, tolerance=0.03))  # an eighth of the bytes; networks predict what they did


if __name__ == "__main__":
    main()

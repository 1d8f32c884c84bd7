"""One VGG-16 training step in low precision against full precision, and the training state packed and simulated.

    python benchmarks/low_precision_step.py [--quick] [--batch 128] [--steps 5]

CIFAR images, batch 128, one thread. Contenders take turns, step by step, in one process, and the least time of each
counts, so that a busy machine troubles them alike. The published program (SWALP, arXiv 1904.11943), measured on
another day on such a machine, takes 1.50 times its own full-precision step.

Bytes of state between two steps: weights, accumulator and momentum in float32, as the published simulation holds
them, against the weights in float32 with packed momentum (the accumulator is the weights).
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from measure import table

from weightbank.lowprecision import Precision
from weightbank.zoo import vgg16

CONTENDERS = {
    "full precision": None,
    "8 bits": Precision.swalp(8),
    "8 bits, packed state": Precision.swalp(8, packed=True),
    "8 bits, to nearest": Precision.swalp(8, rounding="nearest"),
    "8 bits, published order": Precision.swalp(8, order="published"),
}


class Contender:
    """A network with its optimizer, ready to step."""

    def __init__(self, precision: Precision | None) -> None:
        torch.manual_seed(0)
        self.model = vgg16()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.attached = None if precision is None else precision.attached(self.model)
        if self.attached is not None:
            self.attached.optimizer(self.optimizer)
        self.parts = {"forward": [], "backward": [], "step": [], "whole": []}

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        start = time.process_time()
        loss = F.cross_entropy(self.model(x), y)
        forward = time.process_time()
        loss.backward()
        backward = time.process_time()
        self.optimizer.step()
        end = time.process_time()
        times = (forward - start, backward - forward, end - backward, end - start)
        for name, seconds in zip(self.parts, times, strict=True):
            self.parts[name].append(seconds)

    @property
    def state(self) -> int:
        if self.attached is not None:
            return sum(self.attached.nbytes.values())
        momentum = sum(state["momentum_buffer"].nbytes for state in self.optimizer.state.values())
        return momentum + sum(parameter.nbytes for parameter in self.model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="batch 16, two steps: shows that it runs")
    options = parser.parse_args()
    batch, steps = (16, 2) if options.quick else (options.batch, options.steps)
    torch.set_num_threads(1)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    contenders = {name: Contender(precision) for name, precision in CONTENDERS.items()}
    for _ in range(steps + 1):  # the first one warms up
        for contender in contenders.values():
            contender.step(x, y)

    fastest = {name: {part: min(found[1:]) for part, found in c.parts.items()} for name, c in contenders.items()}
    floor = fastest["full precision"]["whole"]
    rows = [("contender", "forward", "backward", "optimizer", "step", "ratio")]
    for name, parts in fastest.items():
        seconds = (f"{parts[part]:.3f} s" for part in ("forward", "backward", "step", "whole"))
        rows.append((name, *seconds, f"{parts['whole'] / floor:.3f}"))
    table(f"CPU seconds of a VGG-16 step, batch {batch}, one thread, least of {steps}", rows)

    weights = sum(parameter.numel() for parameter in contenders["full precision"].model.parameters())
    simulated = 12 * weights
    rows = [
        ("state", "MB", "of the simulation"),
        ("simulated: weights, accumulator, momentum", f"{simulated / 1e6:.1f}", "1"),
    ]
    for name, contender in contenders.items():
        rows.append((name, f"{contender.state / 1e6:.1f}", f"{contender.state / simulated:.3f}"))
    table(f"Bytes of training state between steps, {weights:,} weights", rows)


if __name__ == "__main__":
    main()

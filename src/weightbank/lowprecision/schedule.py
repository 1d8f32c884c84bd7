"""The learning rate of low-precision averaging as published with SWALP (arXiv 1904.11943): high, low, then up again."""

from collections.abc import Callable

from weightbank.errors import DataError


def published_schedule(lr: float, *, start: int, average_lr: float) -> Callable[[int], float]:
    """Return the factor on `lr` in each epoch, as `torch.optim.lr_scheduler.LambdaLR` takes it.

    1 up to half of `start` epochs, linear down to 0.01 at nine tenths, 0.01 up to `start`, and then constantly
    average_lr / lr while iterates are averaged: for the published VGG-16 the rate goes 0.05, 0.0005 and jumps up to
    0.01. Step the scheduler after each epoch. Raises `DataError` unless `start` is at least 1 and both rates positive.

    >>> schedule = published_schedule(0.05, start=200, average_lr=0.01)
    >>> [round(0.05 * schedule(epoch), 5) for epoch in (0, 100, 140, 180, 199, 200)]
    [0.05, 0.05, 0.02525, 0.0005, 0.0005, 0.01]
    """
    if start < 1 or not lr > 0 or not average_lr > 0:
        raise DataError(f"start={start}, lr={lr}, average_lr={average_lr}; wanted at least 1 epoch and positive rates")

    def factor(epoch: int) -> float:
        done = epoch / start
        if done >= 1:
            return average_lr / lr
        if done <= 0.5:
            return 1.0
        return 0.01 if done > 0.9 else 1.0 - 0.99 * (done - 0.5) / 0.4

    return factor


def constant_schedule(lr: float, *, start: int, average_lr: float) -> Callable[[int], float]:
    """Return the factor on `lr`: 1 before epoch `start`, average_lr / lr from there on."""
    if start < 0 or not lr > 0 or not average_lr > 0:
        raise DataError(f"start={start}, lr={lr}, average_lr={average_lr}; wanted at least epoch 0 and positive rates")
    return lambda epoch: 1.0 if epoch < start else average_lr / lr

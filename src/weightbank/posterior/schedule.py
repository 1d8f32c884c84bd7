"""The learning rate of SWAG (arXiv 1902.02476): high and constant, down in a line, then constant while recording."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from weightbank.errors import DataError


def swag_schedule(optimizer: Optimizer, *, start: int, lr: float) -> LambdaLR:
    """Each group's own rate to 50 % of `start` epochs, linear to `lr` at 90 %, constant `lr` from there on.

    `start` is the epoch recording starts with; step the scheduler after each epoch. All groups follow the first
    group's ratio. Raises `DataError` unless `start` is at least 1 and both rates are positive.
    """
    first = float(optimizer.param_groups[0]["lr"])
    if start < 1 or not lr > 0 or not first > 0:
        raise DataError(f"start={start}, lr={lr}, learning rate {first}; wanted at least 1 epoch and positive rates")
    ratio = lr / first

    def factor(epoch: int) -> float:
        done = epoch / start
        if done <= 0.5:
            return 1.0
        return ratio if done > 0.9 else 1.0 - (1.0 - ratio) * (done - 0.5) / 0.4

    return LambdaLR(optimizer, factor)

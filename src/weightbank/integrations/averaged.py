"""`torch.optim.swa_utils.AveragedModel` with a posterior: the same calls, and the law of the iterates besides."""

from typing import Any

import torch
from torch import nn
from torch.optim import swa_utils

from weightbank.distributions import Gaussian, Moments
from weightbank.distributions.keeping import Keep
from weightbank.errors import ResumeError
from weightbank.layout import Layout, everything
from weightbank.store import RowLog


class AveragedModel(swa_utils.AveragedModel):
    """A drop-in for torch's class: averages whatever `update_parameters(model)` shows it, and keeps the iterates' law.

    Forward passes, `module`, `n_averaged`, `update_bn` and schedulers work as in torch. The average is taken by
    Welford's recursion in float32, also for models in fewer bits.

    Args:
        model: averaged from its next `update_parameters` on; copied, as in torch.
        device: of the copy.
        use_buffers: average the buffers, too, instead of copying the newest.
        rows: see `Moments`; None keeps mean and variance only.
        keep: see `Moments`.

    >>> model = torch.nn.Linear(2, 1)
    >>> averaged = AveragedModel(model)
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = torch.nn.init.constant_(model.weight, value)
    ...     averaged.update_parameters(model)
    >>> averaged.module.weight, averaged.moments.variance()[:2]
    (Parameter containing:
    tensor([[3., 3.]], requires_grad=True), tensor([4.6667, 4.6667]))
    """

    def __init__(
        self,
        model: nn.Module,
        device: int | torch.device | None = None,
        use_buffers: bool = False,
        *,
        rows: RowLog | None = None,
        keep: Keep | None = None,
    ) -> None:
        super().__init__(model, device, use_buffers=use_buffers)
        self.moments = Moments(Layout.of(model, where=everything), rows=rows, keep=keep)
        self.n_averaged.fill_(self.moments.count)
        if self.moments.count:
            self.moments.layout.assign(self.module, self.moments.mean())

    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of `model`, and its buffers."""
        if int(self.n_averaged) != self.moments.count:
            raise ResumeError(
                f"{int(self.n_averaged)} models were averaged, but the moments know {self.moments.count}: load a state "
                "that this class saved, torch's own has no moments"
            )
        layout = self.moments.layout
        self.moments.update(layout.ravel(model))
        layout.assign(self.module, self.moments.mean())
        with torch.no_grad():
            for own, new in zip(self.module.buffers(), model.buffers(), strict=True):
                if self.use_buffers and own.is_floating_point():
                    own.lerp_(new.to(own), 1 / self.moments.count)
                else:
                    own.copy_(new)
        self.n_averaged += 1

    def gaussian(self, **choices: Any) -> Gaussian:
        """The SWAG law of what was averaged; see `Moments.gaussian`."""
        return self.moments.gaussian(**choices)

    def get_extra_state(self) -> dict[str, Any]:
        """The moments, for `state_dict`."""
        return self.moments.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The moments, from `load_state_dict`."""
        self.moments.load_state_dict(state)

"""An exponential moving average of the trained weights, evaluated and kept in their place.

Averaged weights lie in flatter, better places than the last step's and make a decaying learning rate
unnecessary (Polyak and Juditsky, 1992; Izmailov et al., UAI 2018). Not torch's AveragedModel: that copies the whole
module, teacher tables included, and has no rising decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """The moving average of a module's parameters; with `decay` 0 it does nothing.

    Args:
        module: the trained module.
        decay: share of the old average kept at each step; early steps keep less, (1 + t) / (10 + t),
            so that the initial weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self._parameters = [p for p in module.parameters() if decay]
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a finished optimizer step."""
        if self._parameters:
            self.steps += 1
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the module has its averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in zip(self._parameters, self._average, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state(self) -> list[Tensor]:
        return self._average

    def restore(self, state: list[Tensor], steps: int) -> None:
        self.steps = steps
        for average, value in zip(self._average, state, strict=True):
            average.copy_(value)

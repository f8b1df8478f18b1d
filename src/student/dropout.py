"""Dropout whose CPU form draws 16 random bits per element instead of a double: 3-4x faster.

On 2 CPU cores `torch.dropout` took a third of a SASRec training step (it draws from its generator
serially, one double per element).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero each element with probability `rate` (to 1/65536) and scale the others to keep the mean.

    On GPUs and in compiled code this is PyTorch's own dropout, which is fused there.
    """
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate, True)
    kept = max(1, round((1.0 - rate) * _LEVELS))
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) < kept - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(_LEVELS / kept)


class Dropout(nn.Module):
    """`dropout` as a layer."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, self.training)

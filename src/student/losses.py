"""Recommendation losses, one pure function each: tensors in, one value per sample [B] out.

Letters: B batch, N items, K some items per sample, L history. Column c of a score matrix [B, N]
belongs to item c+1. Means over the batch, sample weights and settings are the caller's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PROPENSITY_EXPONENT = 0.05
_FEW = 8  # draws per row, from which on a search costs less than comparing each with everything


def sample_negatives(
    forbidden: Tensor, n_items: int, count: int, generator: torch.Generator | None
) -> Tensor:
    """Items that a row does not forbid, uniform, independent: [B, count] int64.

    Exact without rejection: a uniform number below the count of allowed items, moved up past the
    forbidden ones. So the work is fixed and a GPU never waits for the host.

    Args:
        forbidden: [B, M] item ids, 0 = none, repeats allowed.
        n_items: N, larger than M.
        generator: on the same device.
    """
    forbidden = forbidden.sort(dim=1).values
    new = forbidden > 0
    new[:, 1:] &= forbidden[:, 1:] != forbidden[:, :-1]
    rank = new.cumsum(1)  # 1 for the smallest forbidden item of a row
    # The f-th smallest forbidden item blocks every draw >= itself - (f - 1); repeats and padding block none.
    threshold = torch.where(new, forbidden - rank + 1, n_items + 1)
    allowed = n_items - rank[:, -1:]
    draw = torch.rand(
        len(forbidden), count, dtype=torch.float64, device=forbidden.device, generator=generator
    )
    draw = (draw * allowed).long() + 1  # 1..allowed
    if count < _FEW:
        return draw + (threshold.unsqueeze(1) <= draw.unsqueeze(2)).sum(2)
    return draw + torch.searchsorted(threshold.sort(dim=1).values, draw, right=True)


def ce(scores: Tensor, columns: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the catalogue: scores [B, N], target columns [B] -> [B]."""
    return F.cross_entropy(scores, columns, reduction="none", label_smoothing=label_smoothing)


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """Binary cross-entropy of the target and one negative, scores [B], [B] -> [B].

    Half the sum of the two terms: its mean over B is the official mean over 2B.
    """
    return 0.5 * (F.softplus(-positive) + F.softplus(negative))


def gbce(positive: Tensor, negatives: Tensor, n_items: int, t: float) -> Tensor:
    """Generalised BCE (Petrov and Macdonald, RecSys 2023, eq. 12-14): scores [B], [B, K] -> [B].

    sigma(s+)^beta takes the place of sigma(s+), with beta = a (t (1 - 1/a) + 1/a) for the sampling rate
    a = K / (N - 1): it undoes the overconfidence that sampled negatives cause. t = 0 is plain BCE.
    """
    rate = negatives.shape[1] / (n_items - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    return (beta * F.softplus(-positive) + F.softplus(negatives).sum(1)) / (negatives.shape[1] + 1)


def propensity(train_counts: np.ndarray) -> np.ndarray:
    """DROS's item weights ps [N] float64 from how often each item is a training target [N]."""
    counts = np.asarray(train_counts, np.float64) + 1.0
    return (counts / counts.sum()) ** PROPENSITY_EXPONENT

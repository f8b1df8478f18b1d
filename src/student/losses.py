"""Recommendation losses, one pure function each: tensors in, one value per sample [B] out.

Letters: B batch, N items, K some items per sample, L history. Column c of a score matrix [B, N]
belongs to item c+1. Means over the batch, sample weights and settings are the caller's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PROPENSITY_EXPONENT = 0.05


def sample_negatives(
    history: Tensor, target: Tensor, n_items: int, count: int, generator: torch.Generator | None
) -> Tensor:
    """Items that are neither in the history nor the target, uniform, independent: [B, count] int64.

    Exact without rejection: a uniform number below the count of allowed items, moved up past the
    forbidden ones. So the work is fixed and a GPU never waits for the host.

    Args:
        history: [B, L] item ids, 0 = padding, repeats allowed.
        target: [B] item ids.
        n_items: N, larger than L + 1.
        generator: on the history's device.
    """
    forbidden = torch.cat([history, target.unsqueeze(1)], dim=1).sort(dim=1).values
    new = forbidden > 0
    new[:, 1:] &= forbidden[:, 1:] != forbidden[:, :-1]
    rank = new.cumsum(1)  # 1 for the smallest forbidden item of a row
    # The f-th smallest forbidden item blocks every draw >= itself - (f - 1); repeats and padding block none.
    threshold = torch.where(new, forbidden - rank + 1, n_items + 1)
    allowed = n_items - rank[:, -1:]
    draw = torch.rand(len(history), count, dtype=torch.float64, device=history.device, generator=generator)
    draw = (draw * allowed).long() + 1  # 1..allowed
    return draw + (threshold.unsqueeze(1) <= draw.unsqueeze(2)).sum(2)


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


def dro_terms(scores: Tensor, columns: Tensor, propensity: Tensor, beta: float) -> Tensor:
    """DROS's robust term for chosen items (Yang et al., WWW 2023; DLLM2Rec's L_dro), [B, K].

    With a_j = s_j^2 ps_j / beta and b_i = (s_i - 1)^2 ps_i / beta:
    l(b, i) = log(sum over j != i of exp(a_j), + exp(b_i)).

    One pass over the catalogue serves all K items. exp(a_i) may be subtracted from the sum Z only where
    it is at most half of it: the one item per row that can hold more, the row's largest, is summed
    around explicitly (in float32 the difference is 0 for a target logit of 14, and its log -inf).

    Args:
        scores: [B, N].
        columns: [B, K] columns i.
        propensity: [N] ps.
        beta: temperature.
    """
    return _DroTerms.apply(scores, columns, propensity / beta)


class _DroTerms(torch.autograd.Function):
    """`dro_terms` with its gradient written out: one [B, N] buffer instead of five.

    The buffer holds e_j = exp(a_j - m) for all but the row's largest item, m being the largest a of
    those. With S = sum e_j and l_k the terms: d l_k / d s_j = 2 s_j c_j e_j exp(m - l_k) for j != i_k,
    and no factor overflows, for l_k >= m always (Z without i is at least the sum without the largest).
    """

    @staticmethod
    def forward(ctx, scores: Tensor, columns: Tensor, weights: Tensor) -> Tensor:  # noqa: D102
        a = scores * scores
        a *= weights
        a_i = a.gather(1, columns)
        a_largest, largest = a.max(1, keepdim=True)
        a.scatter_(1, largest, float("-inf"))
        shift = a.amax(1, keepdim=True)
        e = a.sub_(shift).exp_()
        rest = shift + e.sum(1, keepdim=True).log_()  # log of the sum without the largest
        log_z = torch.logaddexp(rest, a_largest)
        is_largest = columns == largest
        without_i = torch.where(is_largest, rest, log_z + torch.log1p(-(a_i - log_z).exp()))
        b_i = (scores.gather(1, columns) - 1).square() * weights[columns]
        terms = torch.logaddexp(without_i, b_i)
        ctx.save_for_backward(scores, columns, weights, e, shift, largest, a_largest, a_i, b_i, terms)
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # noqa: D102
        scores, columns, weights, e, shift, largest, a_largest, a_i, b_i, terms = ctx.saved_tensors
        slope = scores * (2 * weights)  # d a_j / d s_j
        slope_largest, slope_i = slope.gather(1, largest), slope.gather(1, columns)
        out = slope.mul_(e).mul_((grad * (shift - terms).exp()).sum(1, keepdim=True))
        is_largest = columns == largest
        # e leaves the largest out; it counts in the terms of all other items.
        others = torch.where(is_largest, 0.0, grad * (a_largest - terms).exp()).sum(1, keepdim=True)
        out.scatter_add_(1, largest, slope_largest * others)
        own = torch.where(is_largest, 0.0, (a_i - terms).exp())  # stands in e, not in the item's own term
        instead = (b_i - terms).exp() * (slope_i - 2 * weights[columns])  # d b_i / d s_i = 2 (s_i - 1) c_i
        out.scatter_add_(1, columns, grad * (instead - own * slope_i))
        return out, None, None

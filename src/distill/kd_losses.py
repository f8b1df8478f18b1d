"""The terms of DLLM2Rec as pure functions (paper: arXiv 2405.00338, section 4; symbols: docs 03).

B batch, N items, K teacher candidates, H student width. Column c of a logit matrix scores item c + 1, and
`columns` are item ids minus 1. The DRO term itself is in `src.student.fused_losses`, shared with the
recommendation loss `dros`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-8  # the official code's guard in the confidence and consistency weights
_BLOCKED_FROM = 512  # catalogue size from which two stages are faster than torch.topk


def position_weights(k: int, beta_pos: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """p [K]: exp(-r / beta_pos) for ranks r = 1..K, normalised (equation 5 of the paper)."""
    ranks = torch.arange(1, k + 1, dtype=torch.float64)
    return torch.softmax(-ranks / beta_pos, dim=0).to(dtype)


def scale_distances(distances: Tensor, scaling: str, temperature: float = 1.0) -> Tensor:
    """Distances ready for exp(-d): along the last axis min-max scaled to [0, 1] (`minmax`) or as they are
    (`none`), then divided by `temperature`. A row of equal distances becomes zeros."""
    if scaling == "minmax":
        low, high = distances.aminmax(dim=-1, keepdim=True)
        distances = (distances - low) / (high - low).clamp_min(torch.finfo(distances.dtype).tiny)
    return distances / temperature


def confidence_weights(distances: Tensor) -> Tensor:
    """q [..., K]: exp(-d) + 1e-8, normalised over the last axis.

    Taken as it stands: distances of 20 and more fall to the floor and all weights become equal, which is
    what scaling them first is for.
    """
    raw = torch.exp(-distances) + FLOOR
    return raw / raw.sum(dim=-1, keepdim=True)


def sequence_confidence(distances: Tensor, k: int) -> Tensor:
    """q [n], one value per sample from the distance of its true next item (`confidence=target`).

    The values average 1 / K over the samples, as a candidate's weight does, so that the same gamma means
    the same share.
    """
    raw = torch.exp(-distances) + FLOOR
    return raw / (raw.mean() * k)


def weight_entropy(weights: Tensor) -> Tensor:
    """[...]: entropy of weights over the last axis as a share of log K; 1 means that all are equal."""
    share = weights / weights.sum(dim=-1, keepdim=True)
    return -(torch.xlogy(share, share)).sum(dim=-1) / math.log(max(weights.shape[-1], 2))


def top_k_threshold(logits: Tensor, k: int) -> Tensor:
    """[B] the K-th largest logit of every row; no gradient.

    The K largest elements lie in the K blocks with the largest maxima, so a large catalogue needs one pass
    for the maxima and a top-k over K blocks only.
    """
    logits = logits.detach()
    n_items = logits.shape[1]
    k = min(k, n_items)
    size = 1 << round(math.log2(max(n_items / k, 1.0)) / 2)  # near sqrt(N / K): the least work
    blocks = n_items // size
    if n_items < _BLOCKED_FROM or k >= blocks:
        return logits.topk(k, dim=1).values[:, -1]
    # Block i holds the columns i, i + blocks, ...: maxima are then taken of whole rows of memory.
    whole = logits[:, : blocks * size].unflatten(1, (size, blocks))
    best = whole.amax(dim=1).topk(k, dim=1, sorted=False).indices
    kept = whole.gather(2, best[:, None, :].expand(-1, size, -1)).flatten(1)
    kept = torch.cat([kept, logits[:, blocks * size :]], dim=1)
    return kept.topk(k, dim=1).values[:, -1]


def consistency(logits: Tensor, candidate_logits: Tensor, k: int) -> Tensor:
    """o [B, K]: 1 where a candidate is among the student's own top K, else 0, plus 1e-8; no gradient.

    Args:
        logits: [B, N]; candidate_logits: [B, K] the same values at the teacher's candidates.
    """
    threshold = top_k_threshold(logits, k)
    found = candidate_logits.detach() >= threshold[:, None]
    return found.to(torch.promote_types(logits.dtype, torch.float32)) + FLOOR


def ranking_weights(
    position: Tensor, confidence: Tensor, consistent: Tensor, gammas: tuple[float, float, float]
) -> Tensor:
    """w [B, K]: u = g_p p + g_c q + g_o o, divided by g_p + g_c + g_o sum_j o_j (equation 8).

    With one confidence per candidate, p and q sum to 1 and the divisor is sum_j u_j: each row of w sums to
    1, as in the code. With one per sample (`confidence` [B, 1]) a row sums to more than 1 where the teacher
    is surer than on average; dividing by sum_j u_j would undo just that.

    Args:
        position: [K]; confidence: [B, K] or [B, 1]; consistent: [B, K].
        gammas: shares of position, confidence, consistency.
    """
    g_position, g_confidence, g_consistency = gammas
    mixed = g_position * position + g_confidence * confidence + g_consistency * consistent
    return mixed / (g_position + g_confidence + g_consistency * consistent.sum(dim=1, keepdim=True))


def rd_bce(candidate_logits: Tensor, negative_logits: Tensor, negative: str) -> Tensor:
    """l [B, K]: -log sigma(s_candidate) - log sigma(-s_negative) (equation 4).

    Args:
        candidate_logits: [B, K]; negative_logits: [B], of one sampled negative per sample.
        negative: `minus`, or `one_minus` for the code's second term -log sigma(1 - s_negative).
    """
    shift = 1.0 if negative == "one_minus" else 0.0
    return F.softplus(-candidate_logits) + F.softplus(negative_logits - shift)[:, None]


def rd_ce(log_z: Tensor, candidate_logits: Tensor) -> Tensor:
    """l [B, K]: -log softmax(s)_candidate, so that sum_k w l is the cross-entropy with soft targets w.

    The natural form beside a full-softmax recommendation loss: every item of the catalogue is a negative,
    and where the teacher's weights equal the true next-item distribution its minimum is that distribution.

    Args:
        log_z: [B] logsumexp of the logits; candidate_logits: [B, K].
    """
    return log_z[:, None] - candidate_logits


def dro_weights(weights: Tensor, sample_weights: Tensor, kind: str) -> Tensor:
    """Weights of the DRO term: w [B, K] itself (`per_sample`), or its mean over the batch [1, K].

    The mean reproduces the code, whose [B, 1] weights were broadcast against [B] losses:
    sum_k mean_b[ w_bk ] mean_b[ l_bk ] in place of sum_k mean_b[ w_bk l_bk ].

    Args:
        sample_weights: r [B], 0 for samples that are not distilled.
    """
    if kind == "per_sample":
        return weights
    return (weights * sample_weights[:, None]).mean(dim=0, keepdim=True)


def align_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Mean distance of student item vectors [M, H] to projected teacher vectors [M, H], scalar.

    `cosine`: 1 - cos, in 0..2; `mse`: squared distance over H.
    """
    if kind == "cosine":
        return (1.0 - F.cosine_similarity(student, teacher, dim=1)).mean()
    return F.mse_loss(student, teacher)


def fuse(student: Tensor, teacher: Tensor, ed_weight: float, offset: bool) -> Tensor:
    """Item vectors [M, H]: the student's own (`offset`) + ed_weight * the projected teacher's."""
    scaled = ed_weight * teacher
    return student + scaled if offset else scaled

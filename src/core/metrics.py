"""Ranking metrics from per-sample ranks, and the statistics that compare two models.

One relevant item per sample, so Recall@K equals HitRatio@K; both names are kept because the papers
use both. A rank is 1 for the best item; `MISSED` stands for "not in the list".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.core.candidates import CandidateConfig
from src.core.config import config_group, setting
from src.core.errors import UserError

MISSED = np.iinfo(np.int32).max
METRICS = ("Recall", "NDCG", "HitRatio")


@config_group
class EvalConfig:
    """`conf/config.yaml`, group `eval`: how models are measured and the best epoch is chosen."""

    ks: tuple[int, ...] = setting("list lengths of Recall@K, NDCG@K, HitRatio@K", ge=1, in_fingerprint=False)
    select_metric: str = setting("validation metric that chooses the best epoch, e.g. NDCG@10")
    exclude_history: bool = setting(
        "leave the history's items out of the ranking in the reported figures",
        in_fingerprint=False,
    )
    batch_size: int = setting("samples scored at once in evaluation", ge=1, in_fingerprint=False)
    candidates: CandidateConfig | None = setting(
        "test samples with few candidates each (iLoRA's protocol); null: only the whole catalogue",
        in_fingerprint=False,
    )

    def problems(self) -> list[str]:
        if not is_metric(self.select_metric, self.ks):
            return [
                f"select_metric: found {self.select_metric!r}, expected one of {', '.join(METRICS)} @ one of {self.ks}"
            ]
        return []


def is_metric(name: str, ks: Sequence[int]) -> bool:
    """Whether `name` is a metric ("NDCG@10") that these list lengths give."""
    kind, _, k = name.partition("@")
    return kind in METRICS and k in map(str, ks)


def ranking_metrics(ranks: np.ndarray, ks: Sequence[int], list_length: int | None = None) -> dict[str, float]:
    """Recall@K, NDCG@K and HitRatio@K.

    Args:
        ranks: [n] ranks of the true item, 1 = best, MISSED = not listed.
        ks: list lengths.
        list_length: length of the rankings; no metric is given for a larger K.

    Raises:
        UserError: there are no ranks.
    """
    if len(ranks) == 0:
        raise UserError("no samples to evaluate", "at least one sample in the split", "dataset.split_ratio")
    ranks = np.asarray(ranks, dtype=np.float64)
    metrics = {}
    for k in ks:
        if list_length is not None and k > list_length:
            continue
        hit = ranks <= k
        recall = float(hit.mean())
        metrics[f"Recall@{k}"] = recall
        metrics[f"NDCG@{k}"] = float(per_sample(ranks, f"NDCG@{k}").mean())
        metrics[f"HitRatio@{k}"] = recall
    return metrics


def per_sample(ranks: np.ndarray, metric: str) -> np.ndarray:
    """The metric of every sample, [n] float64: the hit, or its gain 1 / log2(rank + 1)."""
    name, _, k = metric.partition("@")
    if name not in METRICS:
        raise ValueError(f"metric {metric}: expected one of {', '.join(METRICS)} @ K")
    ranks = np.asarray(ranks, dtype=np.float64)
    gain = 1.0 / np.log2(ranks + 1.0) if name == "NDCG" else 1.0
    return np.where(ranks <= int(k), gain, 0.0)


def ranks_in_lists(
    rankings: np.ndarray, scores: np.ndarray, targets: np.ndarray, histories: np.ndarray | None = None
) -> np.ndarray:
    """Ranks of `targets` in lists of item ids, best first; MISSED where not listed.

    Args:
        rankings: [n, K] item ids.
        scores: [n, K] in the order of the ranking; listed items of equal score count as before the target.
        targets: [n] item ids.
        histories: [n, L] item ids to leave out of the lists first (0 is padding); a target that
            stands in its own history is MISSED. A list is then shorter by up to L.
    """
    targets = np.asarray(targets)[:, None]
    hit = np.asarray(rankings) == targets
    own = np.take_along_axis(np.asarray(scores), hit.argmax(axis=1)[:, None], axis=1)
    at = hit.shape[1] - 1 - (np.asarray(scores) == own)[:, ::-1].argmax(axis=1)
    ranks = np.where(hit.any(axis=1), at + 1, MISSED)
    if histories is None:
        return ranks.astype(np.int32)
    seen = np.zeros(rankings.shape, dtype=bool)
    for column in histories.T:  # L comparisons of [n, K]; never [n, K, L] at once
        seen |= np.asarray(rankings) == column[:, None]
    before = np.cumsum(seen, axis=1)[np.arange(len(at)), at]
    lost = (ranks == MISSED) | (histories == targets).any(axis=1)
    return np.where(lost, MISSED, ranks - before).astype(np.int32)


@dataclass(frozen=True)
class Difference:
    """Mean paired difference b - a with its interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    users: np.ndarray,
    rng: np.random.Generator,
    draws: int = 5000,
    level: float = 0.95,
) -> Difference:
    """Mean of b - a over samples, with a percentile interval from a bootstrap over users.

    Samples of one user are not independent, so whole users are drawn with replacement and the mean
    over the drawn samples is taken (a ratio of two sums). The p-value is twice the smaller share of
    draws on the other side of zero, with one draw added so that it is never 0.

    Args:
        a, b: [n] per-sample metrics of the two models on the same samples.
        users: [n] the user of every sample.
    """
    if not len(a) == len(b) == len(users):
        raise ValueError(f"lengths differ: {len(a)}, {len(b)}, {len(users)}")
    if len(a) == 0:
        raise ValueError("no samples to compare")
    _, user = np.unique(users, return_inverse=True)
    sums = np.bincount(user, weights=np.asarray(b, float) - np.asarray(a, float))
    counts = np.bincount(user).astype(float)
    n_users = len(counts)
    means = np.empty(draws)
    chunk = max(1, int(4e6) // n_users)  # at most two tables of 32 MB at once; the draws do not depend on it
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        times = rng.multinomial(n_users, np.full(n_users, 1.0 / n_users), size=size).astype(float)
        means[start : start + size] = (times @ sums) / (times @ counts)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    below, above = int((means <= 0).sum()), int((means >= 0).sum())
    p_value = min(1.0, 2.0 * (min(below, above) + 1) / (draws + 1))
    return Difference(float(sums.sum() / counts.sum()), float(low), float(high), p_value)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values (Scand. J. Statist. 6, 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted

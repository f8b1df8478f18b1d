"""Ranking metrics from per-sample ranks.

One relevant item per sample, so Recall@K equals HitRatio@K; both names are kept because the papers
use both. A rank is 1 for the best item; `MISSED` stands for "not in the list".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.core.candidates import CandidateConfig
from src.core.config import config_group, setting
from src.core.errors import UserError

MISSED = np.iinfo(np.int32).max
METRICS = ("Recall", "NDCG", "HitRatio")
# What is left out of the ranking: nothing; the history that the model sees; all that the user had before
# (gSASRec's `filter_rated`). A target that is left out itself is MISSED. Each with its file in `metrics/`.
CONVENTIONS = {
    "history_ranked": "test_ranks.npy",
    "history_excluded": "test_ranks_history_excluded.npy",
    "past_excluded": "test_ranks_past_excluded.npy",
}
_ROWS = 512  # samples whose excluded items are marked at once


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

    @property
    def convention(self) -> str:
        """The convention of the reported figures."""
        return "history_excluded" if self.exclude_history else "history_ranked"

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


@dataclass(frozen=True)
class Ranks:
    """Ranks of the true items under every convention, 1 = best.

    Attributes:
        sample_ids: [n] int64.
        ranked: [n] int32, history items ranked like all others.
        history_excluded: [n] int32, items of the history left out.
        past_excluded: [n] int32, all earlier items of the user left out.
        list_lengths: items that every list holds, by convention; empty for a model that ranks the whole catalogue.
    """

    sample_ids: np.ndarray
    ranked: np.ndarray
    history_excluded: np.ndarray
    past_excluded: np.ndarray
    list_lengths: Mapping[str, int] = field(default_factory=dict)

    def of(self, convention: str) -> np.ndarray:
        """[n] the ranks under one of CONVENTIONS."""
        return self.ranked if convention == "history_ranked" else getattr(self, convention)

    def metrics(self, ks: Sequence[int], convention: str = "history_ranked") -> dict[str, float]:
        return ranking_metrics(self.of(convention), ks, self.list_lengths.get(convention))


def ranks_in_lists(
    rankings: np.ndarray, scores: np.ndarray, targets: np.ndarray, excluded: np.ndarray | None = None
) -> np.ndarray:
    """Ranks of `targets` in lists of item ids, best first; MISSED where not listed.

    Args:
        rankings: [n, K] item ids.
        scores: [n, K] in the order of the ranking; listed items of equal score count as before the target.
        targets: [n] item ids.
        excluded: [n, P] item ids to leave out of the lists first (0 is padding); a target among its own is MISSED.
    """
    targets = np.asarray(targets)[:, None]
    hit = np.asarray(rankings) == targets
    target_score = np.take_along_axis(np.asarray(scores), hit.argmax(axis=1)[:, None], axis=1)
    at = hit.shape[1] - 1 - (np.asarray(scores) == target_score)[:, ::-1].argmax(axis=1)
    ranks = np.where(hit.any(axis=1), at + 1, MISSED)
    if excluded is None:
        return ranks.astype(np.int32)
    before = np.cumsum(_listed(rankings, excluded), axis=1)[np.arange(len(at)), at]
    lost = (ranks == MISSED) | (excluded == targets).any(axis=1)
    return np.where(lost, MISSED, ranks - before).astype(np.int32)


def shortest_list(rankings: np.ndarray, excluded: np.ndarray) -> int:
    """Fewest items that a list of `rankings` [n, K] keeps without its `excluded` [n, P] ones."""
    return int((~_listed(rankings, excluded)).sum(axis=1).min(initial=rankings.shape[1]))


def _listed(rankings: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """[n, K] bool, which items of the lists are in the same row of `excluded`."""
    found = np.empty(rankings.shape, bool)
    span = int(max(rankings.max(initial=0), excluded.max(initial=0))) + 1
    for start in range(0, len(rankings), _ROWS):
        rows = slice(start, start + _ROWS)
        marked = np.zeros((len(rankings[rows]), span), bool)
        np.put_along_axis(marked, np.asarray(excluded[rows], np.int64), True, axis=1)
        marked[:, 0] = False  # padding
        found[rows] = np.take_along_axis(marked, np.asarray(rankings[rows], np.int64), axis=1)
    return found

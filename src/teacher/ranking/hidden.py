"""Ranking the catalogue by the read-out state: one forward pass of the prefix per sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.metrics import per_sample
from src.core.signals import check_stop
from src.core.teacher_store import TeacherRows
from src.teacher.classical import top_k
from src.teacher.ilora_model import IloraModel
from src.teacher.ranking.base import Context, not_finite
from src.teacher.samples import SampleSource


class HiddenRanker:
    """See `base.Ranker`; for teachers trained with the `item` objective."""

    def __init__(self, context: Context):
        self.context = context
        self.items = item_vectors(context.model, context.source, context.hybrid)

    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        c = self.context
        how: dict[str, Any] = {"hybrid": c.hybrid, "batch_size": c.export.batch_size}
        return rank_catalogue(c.model, c.source, sample_ids, self.items, k, **how)


@torch.no_grad()
def item_vectors(model: IloraModel, source: SampleSource, hybrid: bool) -> Tensor:
    """[N, D] the catalogue in the space of the ranking, in eval mode under the uniform gate."""
    return model.head.items(source.item_states(model, hybrid))


@torch.no_grad()
def catalogue_scores(
    model: IloraModel,
    source: SampleSource,
    sample_ids: np.ndarray,
    items: Tensor,
    *,
    hybrid: bool,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Log-probabilities of the whole catalogue, batch by batch.

    Args:
        items: [N, D] of `item_vectors`.

    Yields:
        (positions [b] in `sample_ids`, log-probabilities [b, N] float32; column c is item c+1).
    """
    was_training = model.training
    model.eval()
    try:
        for micro in source.micro_batches(sample_ids, batch_size):
            m = micro.to(model.device)
            with model.gates.use(model.gate(m.h_seq)):
                readout = model.readout(model.states(m.prompts, hybrid), m.prompts)
            scores = model.head.scores(model.head.users(readout), items)
            if m.prior is not None:
                scores = scores + m.prior
            yield micro.rows, torch.log_softmax(scores, dim=-1)
            check_stop()
    finally:
        model.train(was_training)


def rank_catalogue(
    model: IloraModel,
    source: SampleSource,
    sample_ids: np.ndarray,
    items: Tensor,
    k: int,
    *,
    hybrid: bool,
    batch_size: int,
) -> TeacherRows:
    """The k best items of every sample; arguments as in `catalogue_scores`."""
    n = len(sample_ids)
    rankings, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    target_scores = np.empty(n, np.float32)
    batches = catalogue_scores(model, source, sample_ids, items, hybrid=hybrid, batch_size=batch_size)
    targets = source.data.targets(sample_ids)
    for rows, batch in batches:
        log_p = batch.float().cpu().numpy()
        if not (finite := np.isfinite(log_p).all(axis=1)).all():
            raise not_finite(sample_ids[rows[~finite][0]])
        best = top_k(log_p, k)  # torch.topk orders equal scores as it likes
        rankings[rows], scores[rows] = best + 1, np.take_along_axis(log_p, best, axis=1)
        target_scores[rows] = log_p[np.arange(len(rows)), targets[rows] - 1]
    return TeacherRows(np.asarray(sample_ids, np.int64), rankings, scores, target_scores)


def ndcg(
    model: IloraModel, source: SampleSource, sample_ids: np.ndarray, items: Tensor, k: int = 10, **how
) -> float:
    """NDCG@k over the catalogue, history items included, ties against the target."""
    ranks = np.empty(len(sample_ids), np.int64)
    targets = source.data.targets(sample_ids).astype(np.int64)
    for rows, log_p in catalogue_scores(model, source, sample_ids, items, **how):
        truth = log_p.gather(1, torch.from_numpy(targets[rows] - 1).to(log_p.device)[:, None])
        ranks[rows] = (log_p >= truth).sum(dim=1).cpu().numpy()
    return float(per_sample(ranks, f"NDCG@{k}").mean())

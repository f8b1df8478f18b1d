"""Ranking the catalogue by the read-out state: one forward pass of the prefix per sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from src.core.logging import progress
from src.core.metrics import per_sample
from src.core.signals import check_stop
from src.core.teacher_store import TeacherRows
from src.teacher.ranking.base import Context
from src.teacher.rows import TRAINING, rank_scores


class HiddenRanker:
    """See `base.Ranker`; for teachers trained with the `item` objective."""

    def __init__(self, context: Context):
        self.context, self.items = context, item_vectors(context)

    def rank(self, sample_ids: np.ndarray, k: int) -> TeacherRows:
        scored = catalogue_scores(self.context, sample_ids, self.items)
        batches = ((rows, log_p.float().cpu().numpy()) for rows, log_p in scored)
        targets = self.context.source.data.targets(sample_ids)
        return rank_scores(sample_ids, targets, batches, k, TRAINING)


@torch.no_grad()
def item_vectors(context: Context) -> Tensor:
    """[N, D] the catalogue in the space of the ranking, in eval mode under the uniform gate."""
    return context.model.head.items(context.source.item_states(context.model, context.hybrid))


@torch.no_grad()
def catalogue_scores(
    context: Context, sample_ids: np.ndarray, items: Tensor
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Log-probabilities of the whole catalogue, batch by batch.

    Args:
        items: [N, D] of `item_vectors`.

    Yields:
        (positions [b] in `sample_ids`, log-probabilities [b, N] float32; column c is item c+1).
    """
    model = context.model
    was_training = model.training
    model.eval()
    try:
        size = context.export.batch_size
        batches, count = context.source.micro_batches(sample_ids, size), -(-len(sample_ids) // size)
        for micro in progress(batches, f"ranking {len(sample_ids)} samples", total=count):
            m = micro.to(model.device)
            with model.gates.use(model.gate(m.h_seq)):
                readout = model.readout(model.states(m.prompts, context.hybrid), m.prompts)
            scores = model.head.scores(model.head.users(readout), items)
            if m.prior is not None:
                scores = scores + m.prior
            yield micro.rows, torch.log_softmax(scores, dim=-1)
            check_stop()
    finally:
        model.train(was_training)


def ndcg(context: Context, sample_ids: np.ndarray, k: int = 10) -> float:
    """NDCG@k over the catalogue, history items included, ties against the target."""
    ranks = np.empty(len(sample_ids), np.int64)
    targets = context.source.data.targets(sample_ids).astype(np.int64)
    for rows, log_p in catalogue_scores(context, sample_ids, item_vectors(context)):
        truth = log_p.gather(1, torch.from_numpy(targets[rows] - 1).to(log_p.device)[:, None])
        ranks[rows] = (log_p >= truth).sum(dim=1).cpu().numpy()
    return float(per_sample(ranks, f"NDCG@{k}").mean())

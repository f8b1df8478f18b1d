"""Full ranking of the catalogue for given samples, in batches, both history conventions in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.core.candidates import CandidateSet, Choices, choose_by_scores
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.metrics import MISSED, EvalConfig, ranking_metrics
from src.student.architectures import Student
from src.student.datamodule import Samples, Selection


@dataclass(frozen=True)
class Ranks:
    """Ranks of the true items, 1 = best.

    Attributes:
        sample_ids: [n] int64.
        ranked: [n] int32, history items ranked like all others.
        history_excluded: [n] int32, history items left out; MISSED where the target is one of them.
    """

    sample_ids: np.ndarray
    ranked: np.ndarray
    history_excluded: np.ndarray

    def chosen(self, exclude_history: bool) -> np.ndarray:
        """[n] the ranks under the convention of `eval.exclude_history`."""
        return self.history_excluded if exclude_history else self.ranked

    def metrics(self, config: EvalConfig) -> dict[str, float]:
        """The metrics of `eval.ks` under `eval.exclude_history`."""
        return ranking_metrics(self.chosen(config.exclude_history), config.ks)


def ranks_from_scores(scores: Tensor, history: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of the targets with the history ranked and excluded, [B] int64 each; ties go against the target.

    Args:
        scores: [B, N]; column c scores item c+1.
        history: [B, L] item ids, 0 = padding.
        target: [B] item ids.
    """
    truth = scores.gather(1, target.unsqueeze(1) - 1)
    ranked = (scores >= truth).sum(1)
    # A history item counts once however often it stands there, and the target is not taken out of its own rank.
    same = history.unsqueeze(2) == history.unsqueeze(1)  # [B, L, L]
    repeated = same.tril(-1).any(dim=2)
    ahead = scores.gather(1, (history - 1).clamp(min=0)) >= truth
    removed = ahead & (history > 0) & ~repeated
    excluded = ranked - removed.sum(1)
    return ranked, torch.where((history == target.unsqueeze(1)).any(1), MISSED, excluded)


@torch.no_grad()
def rank_samples(
    student: Student,
    data: InteractionData | None,
    sample_ids: np.ndarray | None,
    batch_size: int,
    device: torch.device,
    *,
    item_table: Tensor | None = None,
    samples: Samples | None = None,
) -> Ranks:
    """Rank the whole catalogue for every sample, in eval mode (the mode before is restored).

    Memory is bounded by the batch: one score matrix [batch_size, N] at a time.

    Args:
        student: on `device`.
        data, sample_ids: the samples; not read when `samples` is given.
        item_table: [N+1, H] in place of the student's input table (fused teacher embeddings).
        samples: the samples as tensors, where they are evaluated more than once.

    Raises:
        UserError: scores that are not finite (the sample is named).
    """
    samples = Samples(data, Selection(sample_ids), device) if samples is None else samples
    ranked, excluded, finite = [], [], []
    training = student.training
    student.eval()
    try:
        for batch in samples.in_order(batch_size):
            scores = student(batch.history, item_table)
            finite.append(scores.sum(1).isfinite())  # a row's sum carries every NaN and infinity in it
            one, other = ranks_from_scores(scores, batch.history, batch.target)
            ranked.append(one)
            excluded.append(other)
    finally:
        student.train(training)
    ids = samples.selection.sample_ids
    if not (good := torch.cat(finite).cpu().numpy()).all():
        raise UserError(
            f"the student's scores of sample {ids[~good][0]} are not finite ({(~good).sum()} of {len(ids)} samples)",
            "finite scores",
            "student.lr or student.precision",
        )
    return Ranks(
        ids,
        torch.cat(ranked).cpu().numpy().astype(np.int32),
        torch.cat(excluded).cpu().numpy().astype(np.int32),
    )


@torch.no_grad()
def choose(
    student: Student, data: InteractionData, candidates: CandidateSet, batch_size: int, device: torch.device
) -> Choices:
    """Which candidate the student scores highest, in eval mode (the mode before is restored)."""

    def score(ids: np.ndarray) -> np.ndarray:
        return student(torch.from_numpy(data.histories(ids)).long().to(device)).float().cpu().numpy()

    training = student.training
    student.eval()
    try:
        return choose_by_scores(candidates, score, batch_size)
    finally:
        student.train(training)

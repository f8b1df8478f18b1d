"""Full ranking of the catalogue for given samples, in batches, all conventions in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from src.core.candidates import CandidateSet, Choices, choose_by_scores
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.metrics import MISSED, Ranks
from src.core.selection import Selection
from src.student.architectures import ItemTables, Student
from src.student.datamodule import SampleBatch, Samples


def ranks_from_scores(scores: Tensor, target: Tensor, *excluded: Tensor) -> tuple[Tensor, ...]:
    """Ranks of the targets, [B] int64, ties against the target: among all items, and without each of `excluded`.

    Args:
        scores: [B, N]; column c scores item c+1.
        target: [B] item ids.
        excluded: [B, P] item ids to leave out, 0 = padding; MISSED where the target is one of them.
    """
    ahead = scores >= scores.gather(1, target.unsqueeze(1) - 1)
    ranked = ahead.sum(1)
    out = [ranked]
    for items in excluded:
        left_out = ahead.new_zeros(len(ahead), ahead.shape[1] + 1).scatter_(1, items, True)[:, 1:]
        lost = (items == target.unsqueeze(1)).any(1)
        out.append(torch.where(lost, MISSED, ranked - (left_out & ahead).sum(1)))
    return tuple(out)


def rank_samples(
    student: Student,
    data: InteractionData,
    sample_ids: np.ndarray,
    batch_size: int,
    device: torch.device,
    *,
    tables: ItemTables | None = None,
) -> Ranks:
    """Rank the whole catalogue for every sample, in eval mode (the mode before is restored).

    Memory is bounded by the batch: one score matrix [batch_size, N] at a time.

    Args:
        student: on `device`.
        tables: in place of the student's own item tables (fused teacher vectors).

    Raises:
        UserError: scores that are not finite (the sample is named).
    """
    samples, ranks = Samples(data, Selection(sample_ids), device), []
    for batch, scores in _scored(student, samples, batch_size, tables):
        past = torch.from_numpy(data.pasts(batch.sample_ids.cpu().numpy())).long().to(device)
        ranks.append(torch.stack(ranks_from_scores(scores, batch.target, batch.history, past)))
    return Ranks(samples.selection.sample_ids, *torch.cat(ranks, dim=1).cpu().numpy().astype(np.int32))


def rank_prepared(
    student: Student, samples: Samples, batch_size: int, tables: ItemTables | None
) -> np.ndarray:
    """[n] int32 ranks with the history ranked, of samples that are evaluated again and again; as `rank_samples`."""
    scored = _scored(student, samples, batch_size, tables)
    ranks = [ranks_from_scores(scores, batch.target)[0] for batch, scores in scored]
    return torch.cat(ranks).cpu().numpy().astype(np.int32)


@torch.no_grad()
def _scored(
    student: Student, samples: Samples, batch_size: int, tables: ItemTables | None
) -> Iterator[tuple[SampleBatch, Tensor]]:
    """Every batch with its scores [B, N]; all of them are checked at the end, which waits for a GPU once."""
    training, finite = student.training, []
    student.eval()
    try:
        for batch in samples.in_order(batch_size):
            scores = student(batch.history, tables)
            finite.append(scores.sum(1).isfinite())  # a row's sum carries every NaN and infinity in it
            yield batch, scores
    finally:
        student.train(training)
    if not (good := torch.cat(finite).cpu().numpy()).all():
        ids = samples.selection.sample_ids
        raise UserError(
            f"the student's scores of sample {ids[~good][0]} are not finite ({(~good).sum()} of {len(ids)} samples)",
            "finite scores",
            "student.lr or student.precision",
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

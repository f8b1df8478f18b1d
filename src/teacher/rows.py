"""From scores to the rows of a store: the k best items of every sample, equal scores by item id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from src.core.errors import UserError
from src.core.teacher_store import TeacherRows

# What makes the scores of a trained teacher not finite.
TRAINING = "teacher.train.lr or teacher.train.precision"


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest scores of every row of [B, N], best first; equal scores by column.

    Linear in N: the k-th score by partition, then only the chosen k are sorted.
    """
    n_rows, n = scores.shape
    kth = np.partition(scores, n - k, axis=1)[:, n - k : n - k + 1]
    above, equal = scores > kth, scores == kth
    room = k - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room))
    columns = np.nonzero(chosen)[1].reshape(n_rows, k)  # ascending within a row
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def rank_scores(
    sample_ids: np.ndarray,
    targets: np.ndarray,
    batches: Iterable[tuple[np.ndarray | slice, np.ndarray]],
    k: int,
    fix: str,
) -> TeacherRows:
    """Rows of samples whose whole catalogue is scored.

    Args:
        targets: [n] item ids of the true next items.
        batches: (positions in `sample_ids`, scores [b, N] float32; column c is item c + 1, larger is better).
        fix: what to change where scores are not finite.

    Raises:
        UserError: a score is not finite.
    """
    n = len(sample_ids)
    rankings, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    target_scores = np.empty(n, np.float32)
    for rows, batch in batches:
        if not (finite := np.isfinite(batch).all(axis=1)).all():
            raise _not_finite(sample_ids[rows][~finite][0], fix)
        best = top_k(batch, k)  # torch.topk orders equal scores as it likes
        rankings[rows], scores[rows] = best + 1, np.take_along_axis(batch, best, axis=1)
        target_scores[rows] = batch[np.arange(len(batch)), targets[rows] - 1]
    return TeacherRows(np.asarray(sample_ids, np.int64), rankings, scores, target_scores)


def rank_items(
    sample_ids: np.ndarray,
    items: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    target_values: np.ndarray,
    k: int,
    key: str,
) -> TeacherRows:
    """Rows of samples of which only some items are scored.

    Args:
        items, values: per sample the item ids and their scores, larger is better.
        target_values: [n] scores of the true next items.
        key: the setting that decides how many items are scored.

    Raises:
        UserError: fewer than k items were scored, or a score is not finite.
    """
    rankings, scores = np.empty((len(items), k), np.int32), np.empty((len(items), k), np.float32)
    for row, (ids, exact) in enumerate(zip(items, values, strict=True)):
        if len(ids) < k:
            found = f"teacher.export.top_k={k} and {len(ids)} items scored for sample {sample_ids[row]}"
            raise UserError(found, "top_k <= the number of scored items", f"{key} or teacher.export.top_k")
        value = exact.astype(np.float32)
        if not np.isfinite(value).all():
            raise _not_finite(sample_ids[row], TRAINING)
        by_id = np.argsort(ids, kind="stable")
        best = by_id[top_k(value[by_id][None], k)[0]]
        rankings[row], scores[row] = ids[best], value[best]
    target_scores = np.asarray(target_values, np.float32)
    return TeacherRows(np.asarray(sample_ids, np.int64), rankings, scores, target_scores)


def _not_finite(sample_id: int, fix: str) -> UserError:
    return UserError(f"the teacher's scores of sample {sample_id} are not finite", "finite scores", fix)
